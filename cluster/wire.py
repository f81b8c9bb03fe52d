"""What travels between clients and nodes: requests, answers, errors and stream messages, as JSON or msgpack.

Field names and status words are Alpaca's where it has one (`qty`, `limit_price`, `client_order_id`,
`canceled` with one l), so that a facade for its clients can stand on this without bending anything.
Amounts, prices and quantities go out as decimal strings; they may come in as strings or numbers.
Times are RFC 3339 in UTC, microseconds. Requests refuse unknown fields.
"""

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

Text = Annotated[str, Meta(max_length=64)]
Number = Annotated[str, Meta(min_length=1, max_length=40)] | int | float
Identifier = Annotated[str, Meta(pattern=r"^[0-9]{1,19}\Z")]
Timestamp = Annotated[str, Meta(max_length=40)]

SideWord = Literal["buy", "sell"]
TypeWord = Literal["limit", "market"]
TimeInForceWord = Literal["gtc", "ioc", "fok", "day", "gtd"]
SelfTradeWord = Literal["cancel_newest", "cancel_oldest", "cancel_both", "decrement"]
ModeWord = Literal["trading", "post_only", "cancel_only", "halted"]
StandingWord = Literal["voter", "learner", "read_replica"]


class Request(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag_field="do", kw_only=True):
    """Base of all that a client may send.

    key: idempotency key; over HTTP the header `Idempotency-Key` says the same and takes its place.
    sent_at: when the client first sent it; part of what a repeated key is compared by.
    account: may be left out by a principal of exactly one account.
    """

    key: Text = ""
    sent_at: Timestamp = ""
    account: Text = ""


class PlaceOrder(Request, frozen=True, kw_only=True, tag="place"):
    """client_order_id is another name for key. notional is a market buy's budget, fees included."""

    symbol: Text
    side: SideWord
    type: TypeWord
    time_in_force: TimeInForceWord | None = None
    """Left out: gtc for a limit order, ioc for a market order."""
    qty: Number | None = None
    notional: Number | None = None
    limit_price: Number | None = None
    client_order_id: Text = ""
    expires_at: Timestamp = ""
    post_only: bool = False
    self_trade: SelfTradeWord = "cancel_newest"
    session: Text = ""


class ReplaceOrder(Request, frozen=True, kw_only=True, tag="replace"):
    """qty is the new total quantity, what has filled included. The order is named as for CancelOrder.

    client_order_id is another name for key, and the order's from now on. symbol: to be given with
    original_client_order_id where the order may still be on its way; it must be the order's.
    """

    order_id: Identifier = ""
    original_client_order_id: Text = ""
    symbol: Text = ""
    qty: Number | None = None
    limit_price: Number | None = None
    client_order_id: Text = ""


class CancelOrder(Request, frozen=True, kw_only=True, tag="cancel"):
    """Exactly one of order_id and original_client_order_id, the key that the order was placed or last replaced
    under: by that it can be named in the frame that places it."""

    order_id: Identifier = ""
    original_client_order_id: Text = ""


class CancelOrders(Request, frozen=True, kw_only=True, tag="cancel_all"):
    """All open orders of an account; with a symbol only that instrument's. An operator may leave the account out."""

    symbol: Text = ""


class OpenAccount(Request, frozen=True, kw_only=True, tag="open_account"):
    """An empty account id lets the node draw one: opaque, random, not to be guessed."""

    keys_max: Annotated[int, Meta(ge=1, le=10**9)] = 10_000_000


class TransferFunds(Request, frozen=True, kw_only=True, tag="transfer"):
    """kind deposit and withdrawal name `account`; transfer moves from `account` to `target`.

    A withdrawal is pending until it is posted (the outside was paid) or voided.
    """

    kind: Literal["deposit", "withdrawal", "transfer"]
    asset: Text
    amount: Number
    target: Text = ""


class CloseWithdrawal(Request, frozen=True, kw_only=True, tag="close_withdrawal"):
    withdrawal_id: Identifier = ""
    post: bool


class AddAsset(Request, frozen=True, kw_only=True, tag="add_asset"):
    """supply_max in the asset's own decimals."""

    asset: Text
    scale: Annotated[int, Meta(ge=0, le=12)]
    supply_max: Number | None = None


class LimitsBody(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """Quantities and notionals as decimals; what is left out keeps its present or default value."""

    qty_min: Number | None = None
    qty_max: Number | None = None
    notional_min: Number | None = None
    notional_max: Number | None = None
    open_orders_max: Annotated[int, Meta(ge=1, le=100_000)] | None = None
    band_bps: Annotated[int, Meta(ge=0, le=10_000)] | None = None
    collar_bps: Annotated[int, Meta(ge=0, le=10_000)] | None = None
    reference_age_ms_max: Annotated[int, Meta(ge=0, le=86_400_000)] | None = None


class HoursBody(Struct, frozen=True, forbid_unknown_fields=True):
    """Local times `HH:MM`; a close not after its open is on the next day."""

    open: Annotated[str, Meta(pattern=r"^[0-2][0-9]:[0-5][0-9]\Z")]
    close: Annotated[str, Meta(pattern=r"^[0-2][0-9]:[0-5][0-9]\Z")]


class CalendarBody(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """weekly: mon..sun to hours; a day left out is closed; all left out: always open. holidays: YYYY-MM-DD."""

    weekly: dict[Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"], HoursBody] = {}
    utc_offset_minutes: Annotated[int, Meta(ge=-840, le=840)] = 0
    holidays: Annotated[list[Annotated[str, Meta(max_length=10)]], Meta(max_length=400)] = []
    special: Annotated[dict[Annotated[str, Meta(max_length=10)], HoursBody], Meta(max_length=400)] = {}


class AddInstrument(Request, frozen=True, kw_only=True, tag="add_instrument"):
    """tick_size and lot_size as decimals; the scales follow from them."""

    symbol: Text
    base: Text
    quote: Text
    tick_size: Number
    lot_size: Number
    maker_bps: Annotated[int, Meta(ge=0, le=1_000)] = 0
    taker_bps: Annotated[int, Meta(ge=0, le=1_000)] = 0
    limits: LimitsBody = LimitsBody()
    calendar: CalendarBody = CalendarBody()


class ChangeInstrument(Request, frozen=True, kw_only=True, tag="change_instrument"):
    """Exactly one of the groups: mode; both fees; limits; calendar. `symbol` empty with a mode: all instruments."""

    symbol: Text = ""
    mode: ModeWord | None = None
    maker_bps: Annotated[int, Meta(ge=0, le=1_000)] | None = None
    taker_bps: Annotated[int, Meta(ge=0, le=1_000)] | None = None
    limits: LimitsBody | None = None
    calendar: CalendarBody | None = None


class SetReference(Request, frozen=True, kw_only=True, tag="reference"):
    symbol: Text
    price: Number
    observed_at: Timestamp


AnyRequest = (
    PlaceOrder
    | ReplaceOrder
    | CancelOrder
    | CancelOrders
    | OpenAccount
    | TransferFunds
    | CloseWithdrawal
    | AddAsset
    | AddInstrument
    | ChangeInstrument
    | SetReference
)

COMMANDS_PER_FRAME_MAX = 500
GUARD_TIMEOUT_MS_MIN = 1_000
"""Each sign of life is a command in the log, and a quarter of a second is their shortest pace."""


class Authenticate(Struct, frozen=True, forbid_unknown_fields=True, tag="authenticate", tag_field="action"):
    """First message of a stream whose upgrade carried no Authorization header."""

    token: Annotated[str, Meta(max_length=4096)]


class Submit(Struct, frozen=True, forbid_unknown_fields=True, tag="submit", tag_field="action"):
    """Commands, taken in order; `id` comes back with the answers. Many frames may be under way at once."""

    id: Annotated[int, Meta(ge=0, le=2**53)]
    commands: Annotated[list[AnyRequest], Meta(min_length=1, max_length=COMMANDS_PER_FRAME_MAX)]
    timeout_ms: Annotated[int, Meta(ge=10, le=60_000)] = 5_000


class Listen(Struct, frozen=True, forbid_unknown_fields=True, tag="listen", tag_field="action"):
    """Private events of the accounts named (all that the principal may read, when empty).

    after: resume behind this position, `epoch.index.seq`; left out: from now on.
    """

    accounts: Annotated[list[Text], Meta(max_length=1_000)] = []
    after: Annotated[str, Meta(max_length=64)] = ""


class GuardOrders(Struct, frozen=True, forbid_unknown_fields=True, tag="cancel_on_disconnect", tag_field="action"):
    """Open a session for an account, named by the key. Orders that name it die with the stream: at once when it
    closes, at the latest timeout_ms after its last sign of life. A node that drains leaves the client that time to
    open the same session, with the same key, elsewhere. Below GUARD_TIMEOUT_MS_MIN it is refused."""

    account: Text
    timeout_ms: Annotated[int, Meta(ge=1, le=86_400_000)]
    key: Text


class Ping(Struct, frozen=True, forbid_unknown_fields=True, tag="ping", tag_field="action"):
    id: Annotated[int, Meta(ge=0, le=2**53)] = 0


AnyAction = Authenticate | Submit | Listen | GuardOrders | Ping


class Answer(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The answer to one command, over HTTP and stream alike (HTTP adds what the request said: see OrderView).

    error is empty when it was done. `code` is the HTTP status and five digits, as Alpaca's.
    """

    key: str = ""
    index: int = 0
    replay: bool = False
    id: str = ""
    status: str = ""
    reason: str = ""
    filled_qty: str = ""
    leaves_qty: str = ""
    filled_avg_price: str = ""
    fee: str = ""
    at: str = ""
    replaces: str = ""
    kept_priority: bool = False
    count: int = 0
    remaining: int = 0
    account: str = ""
    error: str = ""
    code: int = 0
    message: str = ""
    field: str = ""


class Answers(Struct, frozen=True, omit_defaults=True, tag="results", tag_field="stream"):
    """Answers to one Submit, in its order. session_token: read your writes with it on any node."""

    id: int
    results: list[Answer]
    session_token: str = ""


class Authorized(Struct, frozen=True, tag="authorization", tag_field="stream"):
    """The stream knows who it serves. accounts is empty for a principal that may touch all."""

    role: str
    accounts: list[str]
    status: str = "authorized"


class Listening(Struct, frozen=True, tag="listening", tag_field="stream"):
    """Private events follow, all that come behind `position`. No accounts: all that the principal may read."""

    accounts: list[str]
    position: str


class OrderUpdates(Struct, frozen=True, tag="order_updates", tag_field="stream"):
    """Private events of one log entry, in order. position: of the last one; listen again behind it."""

    position: str
    events: list[dict[str, object]]


class Guarding(Struct, frozen=True, tag="cancel_on_disconnect", tag_field="stream"):
    """A cancel-on-disconnect session stands (open), or has ended and its orders are being canceled."""

    account: str
    session: str
    timeout_ms: int
    open: bool = True


class Pong(Struct, frozen=True, tag="pong", tag_field="stream"):
    id: int


class Heartbeat(Struct, frozen=True, omit_defaults=True, tag="heartbeat", tag_field="stream"):
    """Once a second. position: everything up to here was sent, where one listens or follows the feed."""

    position: str = ""


class StreamError(Struct, frozen=True, omit_defaults=True, kw_only=True, tag="error", tag_field="stream"):
    """What went wrong, in the words of ErrorBody. With an id: about that frame; else the stream may close after it."""

    code: int
    error: str
    message: str
    field: str = ""
    id: int | UnsetType = UNSET


class Closing(Struct, frozen=True, omit_defaults=True, tag="closing", tag_field="stream"):
    """The node closes this stream next. resume: the position to go on behind, on any node."""

    reason: str
    resume: str = ""


class ErrorBody(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Any non-2xx. error is the word to branch on, message is for people, request_id finds it in the logs."""

    code: int
    error: str
    message: str
    request_id: str = ""
    field: str = ""
    key: str = ""
    definite: bool = True
    """False: the command may still take effect; ask `GET /v1/commands/{key}` or send it again with its key."""


class OrderView(Struct, frozen=True, kw_only=True):
    """An order as clients see it. Values that do not apply are null."""

    id: str
    client_order_id: str
    account: str
    symbol: str
    side: SideWord
    type: TypeWord
    order_type: TypeWord
    time_in_force: TimeInForceWord
    qty: str | None
    notional: str | None
    limit_price: str | None
    filled_qty: str
    filled_avg_price: str | None
    leaves_qty: str
    fee: str
    status: str
    reason: str
    post_only: bool
    self_trade: SelfTradeWord
    session: str | None
    created_at: str
    submitted_at: str
    updated_at: str
    filled_at: str | None = None
    canceled_at: str | None = None
    expired_at: str | None = None
    replaced_at: str | None = None
    expires_at: str | None = None
    replaces: str | None = None
    replaced_by: str | None = None
    replay: bool | UnsetType = UNSET
    kept_priority: bool | UnsetType = UNSET
    """Only in the answer to a replacement: it kept its place in the queue."""


class BalanceView(Struct, frozen=True):
    asset: str
    available: str
    held: str


class AccountView(Struct, frozen=True):
    id: str
    status: str
    balances: list[BalanceView]
    open_orders: int


class BookLevel(Struct, frozen=True):
    price: str
    qty: str
    orders: int


class BookView(Struct, frozen=True):
    symbol: str
    index: int
    bids: list[BookLevel]
    asks: list[BookLevel]


class TradeView(Struct, frozen=True, kw_only=True):
    """A trade; the fields of one's own side are there only when asked for an account."""

    id: str
    symbol: str
    price: str
    qty: str
    taker_side: SideWord
    at: str
    index: int
    account: str | UnsetType = UNSET
    order_id: str | UnsetType = UNSET
    side: SideWord | UnsetType = UNSET
    liquidity: Literal["maker", "taker"] | UnsetType = UNSET
    fee: str | UnsetType = UNSET


class WithdrawalView(Struct, frozen=True):
    """A withdrawal that is neither posted nor void yet: the amount is held."""

    id: str
    account: str
    asset: str
    amount: str
    status: Literal["pending"]
    at: str


class LedgerView(Struct, frozen=True):
    row: str
    index: int
    account: str
    asset: str
    amount: str
    balance: str
    reason: str
    reference: str
    at: str


class InstrumentView(Struct, frozen=True, kw_only=True):
    symbol: str
    base: str
    quote: str
    tick_size: str
    lot_size: str
    mode: ModeWord
    maker_bps: int
    taker_bps: int
    limits: LimitsBody
    calendar: CalendarBody
    reference_price: str | None = None
    reference_at: str | None = None
    open: bool = True


class MemberView(Struct, frozen=True, kw_only=True):
    """One member as it sees itself; `tiebreak status` puts them beside each other."""

    name: str
    site: str
    role: Literal["replica", "witness"]
    state: Literal["leader", "follower", "candidate"]
    leader: str | None
    term: int
    epoch: int
    has_quorum: bool
    ready: bool
    first_index: int
    last_index: int
    durable_index: int
    commit_index: int
    applied_index: int
    stored_index: int
    time_us: int
    digest: str
    digest_index: int
    writes_stopped: bool
    uptime_s: float
    pid: int
    version: str
    peers: list[dict[str, object]] = []
    disk_free_bytes: int = 0
    log: str = ""
    rejoining: bool = False
    refusal: str = ""
    standing: StandingWord = "voter"
    apis: dict[str, str] = {}
    barred: str = ""


# ---- the cluster itself ----


class TransferLeadership(Struct, frozen=True, forbid_unknown_fields=True, rename={"source": "from"}):
    """to: a full replica; left out: the one that is furthest. from: only while this member leads, so that the
    same request may be sent again."""

    to: Text = ""
    source: Text = ""


class LeadershipView(Struct, frozen=True):
    """Who leads now."""

    leader: str
    term: int


Host = Annotated[str, Meta(min_length=1, max_length=255)]
Port = Annotated[int, Meta(ge=1, le=65535)]


class AddMember(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A member that is to catch up, as learner or read replica. Its certificate bears its name."""

    name: Text
    site: Text
    role: Literal["replica", "witness"] = "replica"
    standing: Literal["learner", "read_replica"] = "learner"
    peer_host: Host
    peer_port: Port
    api_host: Host
    api_port: Port


class ClusterMember(Struct, frozen=True, kw_only=True):
    """One member as the member sees it that answers. What only a leader knows is null elsewhere.

    lag: entries of the log that it lacks. joined: it counts; false on a new disk that has not caught up.
    """

    name: str
    site: str
    role: Literal["replica", "witness"]
    standing: StandingWord
    peer_host: str
    peer_port: int
    api_host: str
    api_port: int
    connected: bool
    joined: bool
    lag: int | None = None
    heard_ms_ago: int = 0


class ClusterView(Struct, frozen=True, kw_only=True):
    """Who belongs to the cluster. configuration_index: of the log entry that says so, 0 for those it began with.

    committed: it stays; false while a change is under way.
    """

    member: str
    leader: str
    term: int
    configuration_index: int
    committed: bool
    generation: int
    members: list[ClusterMember]
    removed: list[str]
