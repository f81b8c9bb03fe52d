"""The client library: commands that end as Done, Refused or Unknown, and reads, against whichever member answers.

async with Client(["http://127.0.0.1:7710"], token=token) as client:
    match await client.place_order(account="alice", symbol="AAPL", side="buy", qty=10, limit_price="187.20"):
        case Done(answer=answer):
            print("order", answer.id, answer.status)
        case Refused(error="insufficient_funds"):
            print("not enough money")
        case Refused(error=error, message=message):
            print("refused:", error, message)
        case Unknown(key=key):
            print("ask again with", key)
"""

import ssl
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Literal, Self, TypeVar
from urllib.parse import quote

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from cluster import wire
from cluster.client_answers import (
    ChangeUnknown,
    ClientError,
    Done,
    Outcome,
    ReadRefused,
    Refused,
    Unavailable,
    Unknown,
)
from cluster.client_http import Caller, Said
from cluster.client_members import Health, Member, Members
from cluster.client_stream import Stream, StreamRefused
from cluster.topology import MemberRole, read_topology

__all__ = [
    "ChangeUnknown",
    "Client",
    "ClientError",
    "Done",
    "Health",
    "Member",
    "Outcome",
    "Page",
    "ReadRefused",
    "Refused",
    "Stream",
    "StreamRefused",
    "Unavailable",
    "Unknown",
]

TIMEOUT_MS = 5_000
UNKNOWN_KEPT_MAX = 10_000
"""Commands of unknown outcome whose sent_at a client remembers, the newest."""

MEMBERS_PATH = "/v1/cluster/members"

Amount = str | int | Decimal
"""A decimal: text, whole number or Decimal. No float: 0.1 is not one tenth."""
Consistency = Literal["linearizable", "session", "local"]
"""linearizable: nothing acknowledged before the call is missing. session: nothing that this client wrote or read
is missing. local: whatever the member has, which may be old."""

View = TypeVar("View")
Item = TypeVar("Item")


class AssetView(Struct, frozen=True):
    """scale: decimals. supply_max: most that may exist."""

    asset: str
    scale: int
    supply_max: str


class Page(Struct, Generic[Item], frozen=True):
    """Some of a list. `next_page_token` asks for what follows; empty: that was all. index: the log's at the read."""

    items: list[Item]
    next_page_token: str = ""
    index: int = 0


class Client:
    """One principal's view of a cluster. Use it on one event loop, as `async with Client(...) as client`.

    Commands return an Outcome and raise nothing for what the cluster says. They are tried again, with the same
    bytes and key, on lost connections, 503 and unknown outcomes, until timeout_ms is over; what is definitely
    refused is never sent again. Reads return views and raise ReadRefused or Unavailable.
    """

    def __init__(
        self,
        members: Sequence[Member | str],
        *,
        token: str | Callable[[], str] = "",
        timeout_ms: int = TIMEOUT_MS,
        tls: ssl.SSLContext | None = None,
        stamp: bool = True,
    ) -> None:
        """members: addresses (`http://host:port`) or Members; at least one full replica.

        token: a bearer token, or a function that gives a fresh one, called for each request.
        timeout_ms: the deadline of every call that names no other.
        stamp: send `sent_at` with commands, so that a repeat after keys are forgotten (24 h) is refused and not
            done again. Without, the same request under the same key is one command whichever process sends it.
        """
        self.timeout_ms = timeout_ms
        self._stamp = stamp
        self._sent_at: dict[str, str] = {}
        """By key, of commands whose outcome is unknown: a repeat is the same request only if it says the same."""
        self._members = Members(members)
        self._caller = Caller(self._members, token=token, tls=tls)

    @classmethod
    def from_topology(cls, path: Path, *, token: str | Callable[[], str] = "", timeout_ms: int = TIMEOUT_MS) -> Self:
        """A client of the cluster that a topology file describes, over plain HTTP.

        Raises cluster.topology.InvalidTopology, or OSError when the file can't be read.
        """
        return cls(members_of(path), token=token, timeout_ms=timeout_ms)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._caller.close()

    @property
    def session_token(self) -> str:
        """Hand this to another client and its reads with consistency `session` see what this one saw."""
        return self._caller.session_token

    def stream(self, *, timeout_ms: int | None = None, json: bool = False) -> Stream:
        """Pipelined order entry over one WebSocket: `async with client.stream() as stream`.

        json: text frames instead of msgpack, to read them on the wire.
        """
        timeout = self.timeout_ms if timeout_ms is None else timeout_ms
        return Stream(self._caller, self._prepared, self._settled, timeout_ms=timeout, json=json)

    # ---- commands ----

    async def submit(self, request: wire.AnyRequest, *, timeout_ms: int | None = None) -> Outcome:
        """Send any request of cluster.wire. A key and sent_at are added where missing."""
        request = self._prepared(request)
        method, path, params, body = _route(request)
        deadline = self._deadline(timeout_ms)
        found = await self._caller.command(method, path, key=request.key, body=body, params=params, deadline=deadline)
        return self._settled(request, found)

    async def place_order(
        self,
        *,
        symbol: str,
        side: wire.SideWord,
        type: wire.TypeWord = "limit",
        qty: Amount | None = None,
        notional: Amount | None = None,
        limit_price: Amount | None = None,
        time_in_force: wire.TimeInForceWord | None = None,
        expires_at: datetime | str = "",
        post_only: bool = False,
        self_trade: wire.SelfTradeWord = "cancel_newest",
        session: str = "",
        account: str = "",
        key: str = "",
        timeout_ms: int | None = None,
    ) -> Outcome:
        """Place an order. `Done.answer` says id, status, filled_qty, filled_avg_price, fee.

        notional: a market buy's budget, fees included, instead of qty. limit_price: for a market order the worst
        price that it may trade at. account may be left out when the token names exactly one.
        """
        return await self.submit(
            wire.PlaceOrder(
                key=key,
                account=account,
                symbol=symbol,
                side=side,
                type=type,
                time_in_force=time_in_force,
                qty=_text(qty),
                notional=_text(notional),
                limit_price=_text(limit_price),
                expires_at=_time(expires_at),
                post_only=post_only,
                self_trade=self_trade,
                session=session,
            ),
            timeout_ms=timeout_ms,
        )

    async def replace_order(
        self,
        order_id: str = "",
        *,
        client_order_id: str = "",
        qty: Amount | None = None,
        limit_price: Amount | None = None,
        symbol: str = "",
        account: str = "",
        key: str = "",
        timeout_ms: int | None = None,
    ) -> Outcome:
        """Change an open limit order; it gets a new id (`Done.id`). qty is the new total, what has filled included.

        A smaller quantity at the same price keeps the place in the queue; anything else loses it. The order is
        named by its id or by the key under which it was placed or last replaced; from now on by this one's key.
        symbol: needed with client_order_id where the order may still be on its way.
        """
        request = wire.ReplaceOrder(
            key=key,
            account=account,
            order_id=order_id,
            original_client_order_id=client_order_id,
            symbol=symbol,
            qty=_text(qty),
            limit_price=_text(limit_price),
        )
        return await self.submit(request, timeout_ms=timeout_ms)

    async def cancel_order(
        self,
        order_id: str = "",
        *,
        client_order_id: str = "",
        account: str = "",
        key: str = "",
        timeout_ms: int | None = None,
    ) -> Outcome:
        """Cancel an open order, named by its id or by the key under which it was placed or last replaced.

        Refused as order_not_found when it is closed already, or another account's.
        """
        request = wire.CancelOrder(
            key=key, account=account, order_id=order_id, original_client_order_id=client_order_id
        )
        return await self.submit(request, timeout_ms=timeout_ms)

    async def cancel_orders(
        self, *, account: str = "", symbol: str = "", key: str = "", timeout_ms: int | None = None
    ) -> Outcome:
        """Cancel all open orders of an account, or only one instrument's; `Done.answer.remaining` follow in chunks."""
        return await self.submit(wire.CancelOrders(key=key, account=account, symbol=symbol), timeout_ms=timeout_ms)

    async def open_account(
        self, account: str = "", *, keys_max: int = 10_000_000, key: str = "", timeout_ms: int | None = None
    ) -> Outcome:
        """Open an account; without an id the node draws one: `Done.answer.account`."""
        return await self.submit(wire.OpenAccount(key=key, account=account, keys_max=keys_max), timeout_ms=timeout_ms)

    async def deposit(
        self, account: str, asset: str, amount: Amount, *, key: str = "", timeout_ms: int | None = None
    ) -> Outcome:
        """Bring an amount in from the outside world."""
        request = wire.TransferFunds(key=key, account=account, kind="deposit", asset=asset, amount=str(amount))
        return await self.submit(request, timeout_ms=timeout_ms)

    async def transfer(
        self, source: str, target: str, asset: str, amount: Amount, *, key: str = "", timeout_ms: int | None = None
    ) -> Outcome:
        """Move an available amount from one account to another."""
        request = wire.TransferFunds(
            key=key, account=source, kind="transfer", asset=asset, amount=str(amount), target=target
        )
        return await self.submit(request, timeout_ms=timeout_ms)

    async def request_withdrawal(
        self, account: str, asset: str, amount: Amount, *, key: str = "", timeout_ms: int | None = None
    ) -> Outcome:
        """Hold an amount (`Done.id` names the withdrawal) until it is posted or voided."""
        request = wire.TransferFunds(key=key, account=account, kind="withdrawal", asset=asset, amount=str(amount))
        return await self.submit(request, timeout_ms=timeout_ms)

    async def close_withdrawal(
        self, withdrawal_id: str, *, post: bool, key: str = "", timeout_ms: int | None = None
    ) -> Outcome:
        """post: the outside was paid, the money leaves. Otherwise it is available again."""
        request = wire.CloseWithdrawal(key=key, withdrawal_id=withdrawal_id, post=post)
        return await self.submit(request, timeout_ms=timeout_ms)

    async def add_asset(
        self,
        asset: str,
        *,
        scale: int,
        supply_max: Amount | None = None,
        key: str = "",
        timeout_ms: int | None = None,
    ) -> Outcome:
        """Make an asset known; its smallest unit is 10**-scale. supply_max: how much of it may ever exist."""
        request = wire.AddAsset(key=key, asset=asset, scale=scale, supply_max=_text(supply_max))
        return await self.submit(request, timeout_ms=timeout_ms)

    async def add_instrument(
        self,
        symbol: str,
        *,
        base: str,
        quote: str,
        tick_size: Amount,
        lot_size: Amount,
        maker_bps: int = 0,
        taker_bps: int = 0,
        limits: wire.LimitsBody | None = None,
        calendar: wire.CalendarBody | None = None,
        key: str = "",
        timeout_ms: int | None = None,
    ) -> Outcome:
        """List an instrument: `base` is what is traded, `quote` what it is paid in."""
        request = wire.AddInstrument(
            key=key,
            symbol=symbol,
            base=base,
            quote=quote,
            tick_size=str(tick_size),
            lot_size=str(lot_size),
            maker_bps=maker_bps,
            taker_bps=taker_bps,
            limits=limits or wire.LimitsBody(),
            calendar=calendar or wire.CalendarBody(),
        )
        return await self.submit(request, timeout_ms=timeout_ms)

    async def change_instrument(
        self,
        symbol: str = "",
        *,
        mode: wire.ModeWord | None = None,
        maker_bps: int | None = None,
        taker_bps: int | None = None,
        limits: wire.LimitsBody | None = None,
        calendar: wire.CalendarBody | None = None,
        key: str = "",
        timeout_ms: int | None = None,
    ) -> Outcome:
        """Change one of: the mode (no symbol: of all instruments), both fees, the limits, the calendar."""
        request = wire.ChangeInstrument(
            key=key,
            symbol=symbol,
            mode=mode,
            maker_bps=maker_bps,
            taker_bps=taker_bps,
            limits=limits,
            calendar=calendar,
        )
        return await self.submit(request, timeout_ms=timeout_ms)

    async def set_reference(
        self,
        symbol: str,
        price: Amount,
        *,
        observed_at: datetime | str = "",
        key: str = "",
        timeout_ms: int | None = None,
    ) -> Outcome:
        """Tell a price seen outside, now or at observed_at; bands, collars and market orders need it fresh."""
        request = wire.SetReference(key=key, symbol=symbol, price=str(price), observed_at=_time(observed_at) or _now())
        return await self.submit(request, timeout_ms=timeout_ms)

    # ---- reads ----

    async def order(self, order_id: str, *, consistency: Consistency = "linearizable") -> wire.OrderView:
        """Open or closed. Raises ReadRefused (order_not_found), Unavailable."""
        return await self._view(f"/v1/orders/{_segment(order_id)}", wire.OrderView, {}, consistency)

    async def order_of_key(
        self, client_order_id: str, *, account: str = "", consistency: Consistency = "linearizable"
    ) -> wire.OrderView:
        """The open order of a key, or the one that the key made. Raises ReadRefused (order_not_found), Unavailable."""
        params = {"account": account, "client_order_id": client_order_id}
        return await self._view("/v1/orders:by_client_order_id", wire.OrderView, params, consistency)

    async def orders(
        self,
        *,
        account: str = "",
        status: Literal["open", "closed", "all"] = "open",
        symbol: str = "",
        limit: int = 50,
        page_token: str = "",
        consistency: Consistency = "linearizable",
    ) -> Page[wire.OrderView]:
        """Orders of an account, newest first. Raises ReadRefused, Unavailable."""
        params = {
            "account": account,
            "status": status,
            "symbol": symbol,
            "limit": str(limit),
            "page_token": page_token,
        }
        return await self._page("/v1/orders", wire.OrderView, params, consistency)

    async def account(self, account: str, *, consistency: Consistency = "linearizable") -> wire.AccountView:
        """Balances and the number of open orders. Raises ReadRefused (account_not_found), Unavailable."""
        return await self._view(f"/v1/accounts/{_segment(account)}", wire.AccountView, {}, consistency)

    async def book(self, symbol: str, *, depth: int = 10, consistency: Consistency = "linearizable") -> wire.BookView:
        """The best levels of both sides. Raises ReadRefused (instrument_not_found), Unavailable."""
        return await self._view(f"/v1/book/{_segment(symbol)}", wire.BookView, {"depth": str(depth)}, consistency)

    async def trades(
        self,
        *,
        symbol: str = "",
        account: str = "",
        limit: int = 50,
        page_token: str = "",
        consistency: Consistency = "linearizable",
    ) -> Page[wire.TradeView]:
        """Trades of an instrument, or of an account with its own side of each. Raises ReadRefused, Unavailable."""
        params = {"symbol": symbol, "account": account, "limit": str(limit), "page_token": page_token}
        return await self._page("/v1/trades", wire.TradeView, params, consistency)

    async def withdrawals(
        self,
        account: str = "",
        *,
        limit: int = 50,
        page_token: str = "",
        consistency: Consistency = "linearizable",
    ) -> Page[wire.WithdrawalView]:
        """Withdrawals that are neither posted nor void yet, oldest first. Raises as `orders`."""
        params = {"account": account, "limit": str(limit), "page_token": page_token}
        return await self._page("/v1/transfers", wire.WithdrawalView, params, consistency)

    async def ledger(
        self,
        account: str,
        *,
        limit: int = 50,
        page_token: str = "",
        consistency: Consistency = "linearizable",
    ) -> Page[wire.LedgerView]:
        """Movements of an account's money, newest first, with the balance after each. Raises as `orders`."""
        params = {"account": account, "limit": str(limit), "page_token": page_token}
        return await self._page("/v1/ledger", wire.LedgerView, params, consistency)

    async def assets(self, *, consistency: Consistency = "linearizable") -> list[AssetView]:
        """All assets. Raises ReadRefused, Unavailable."""
        return (await self._page("/v1/assets", AssetView, {}, consistency)).items

    async def instruments(self, *, consistency: Consistency = "linearizable") -> list[wire.InstrumentView]:
        """All that is listed. Raises ReadRefused, Unavailable."""
        return (await self._page("/v1/instruments", wire.InstrumentView, {}, consistency)).items

    async def instrument(self, symbol: str, *, consistency: Consistency = "linearizable") -> wire.InstrumentView:
        """Raises ReadRefused (instrument_not_found), Unavailable."""
        return await self._view(f"/v1/instruments/{_segment(symbol)}", wire.InstrumentView, {}, consistency)

    async def command(self, key: str, *, account: str = "") -> Outcome:
        """What became of the command with this key; ends every Unknown.

        Raises ReadRefused (command_not_found: not in the log up to now, which a command still under way may yet
        be), Unavailable.
        """
        said = await self._read(f"/v1/commands/{_segment(key)}", {"account": account}, "linearizable", None)
        answer = _decode(said.body, wire.Answer)
        if answer.error:
            return Refused(key, answer.error, answer.message, answer.code, answer.field, True)
        return Done(key, answer)

    async def members(self, *, digest_at: int = 0) -> list[Health]:
        """What each member says of itself, witnesses too. Raises nothing. digest_at: give the digest at this index."""
        params = {"digest_at": str(digest_at)} if digest_at else {}
        return await self._members.health(self._caller.session(), self._caller.auth, params)

    async def get(self, path: str, params: Mapping[str, str] | None = None, *, timeout_ms: int | None = None) -> bytes:
        """Any GET of the API, as it came. Raises ReadRefused, Unavailable."""
        return (await self._read(path, params or {}, "linearizable", timeout_ms)).body

    # ---- the cluster itself: each change is made once, however often it is asked for ----

    async def transfer_leadership(
        self, to: str = "", *, source: str = "", timeout_ms: int | None = None
    ) -> wire.LeadershipView:
        """Hand leadership to a member, or to the replica that is furthest; returns who leads then.

        source: only while this member leads; without it, and without `to`, a repeat would move it on.
        Raises ReadRefused (nothing was done), Unavailable (nor here), ChangeUnknown.
        """
        body = _encode(wire.TransferLeadership(to=to, source=source))
        return await self._change("POST", "/v1/cluster/transfer", wire.LeadershipView, body, timeout_ms)

    async def cluster_members(self, *, consistency: Consistency = "linearizable") -> wire.ClusterView:
        """Who belongs to the cluster. local: as one member knows, also where nobody leads. Raises as `order`."""
        return await self._view("/v1/cluster/members", wire.ClusterView, {}, consistency)

    async def add_member(self, member: wire.AddMember, *, timeout_ms: int | None = None) -> wire.ClusterView:
        """Raises ReadRefused (nothing was logged), Unavailable (nor here), ChangeUnknown; the others below too."""
        return await self._change("POST", MEMBERS_PATH, wire.ClusterView, _encode(member), timeout_ms)

    async def promote_member(self, name: str, *, timeout_ms: int | None = None) -> wire.ClusterView:
        """Make a voter of a learner; waits for what it lacks, within the timeout."""
        path = f"{MEMBERS_PATH}/{_segment(name)}/promote"
        return await self._change("POST", path, wire.ClusterView, b"", timeout_ms)

    async def demote_member(self, name: str, *, timeout_ms: int | None = None) -> wire.ClusterView:
        """Make a learner of a voter."""
        return await self._change("POST", f"{MEMBERS_PATH}/{_segment(name)}/demote", wire.ClusterView, b"", timeout_ms)

    async def remove_member(self, name: str, *, timeout_ms: int | None = None) -> wire.ClusterView:
        """Remove a member for good: it is told and leaves, and its name never comes back."""
        return await self._change("DELETE", f"{MEMBERS_PATH}/{_segment(name)}", wire.ClusterView, b"", timeout_ms)

    # ---- how ----

    async def _change(self, method: str, path: str, kind: type[View], body: bytes, timeout_ms: int | None) -> View:
        said = await self._caller.change(method, path, body=body, deadline=self._deadline(timeout_ms))
        return _decode(said.body, kind)

    def _prepared(self, request: wire.AnyRequest) -> wire.AnyRequest:
        if self._sent_at and not request.sent_at:
            sent_at = self._sent_at.get(request.key or getattr(request, "client_order_id", ""), "")
            request = replace(request, sent_at=sent_at) if sent_at else request
        return prepared(request, stamp=self._stamp)

    def _settled(self, request: wire.AnyRequest, outcome: Outcome) -> Outcome:
        """Remember when a command of unknown outcome was sent first; forget it once its outcome is known."""
        if not isinstance(outcome, Unknown):
            if self._sent_at:
                self._sent_at.pop(request.key, None)
            return outcome
        if request.sent_at:
            self._sent_at[request.key] = request.sent_at
            if len(self._sent_at) > UNKNOWN_KEPT_MAX:
                del self._sent_at[next(iter(self._sent_at))]
        return replace(outcome, sent_at=request.sent_at)

    def _deadline(self, timeout_ms: int | None) -> float:
        return time.monotonic() + (self.timeout_ms if timeout_ms is None else timeout_ms) / 1000

    async def _read(
        self, path: str, params: Mapping[str, str], consistency: Consistency, timeout_ms: int | None
    ) -> Said:
        given = {name: value for name, value in params.items() if value}
        headers = {}
        if consistency == "local":
            given["consistency"] = "local"
        elif consistency == "session" and self._caller.session_token:
            headers["X-Session-Token"] = self._caller.session_token
        try:
            return await self._caller.read(path, params=given, headers=headers, deadline=self._deadline(timeout_ms))
        except ReadRefused as error:
            if error.error == "epoch_changed":
                # The cluster went back to a backup. Whoever asks must know; the next read begins anew.
                self._caller.forget_session()
            raise

    async def _view(self, path: str, kind: type[View], params: Mapping[str, str], consistency: Consistency) -> View:
        return _decode((await self._read(path, params, consistency, None)).body, kind)

    async def _page(
        self, path: str, kind: type[View], params: Mapping[str, str], consistency: Consistency
    ) -> Page[View]:
        said = await self._read(path, params, consistency, None)
        page = _decode(said.body, _PageBody)
        return Page(_convert(page.items, list[kind]), page.next_page_token or "", said.index)  # type: ignore[valid-type]


class _PageBody(Struct):
    items: list[Any]
    next_page_token: str | None = None


def members_of(path: Path) -> list[Member]:
    """The members that a topology file names, at their API addresses."""
    topology = read_topology(path)
    return [
        Member(f"http://{member.api_host}:{member.api_port}", member.name, witness=member.role is MemberRole.witness)
        for member in topology.members
    ]


def prepared(request: wire.AnyRequest, *, stamp: bool = True) -> wire.AnyRequest:
    """The request with a key and sent_at: fixed before the first try, since a repeat is compared by its body."""
    key = request.key or getattr(request, "client_order_id", "")
    if key and (request.sent_at or not stamp):
        return request if request.key else replace(request, key=key)
    sent_at = request.sent_at or (_now() if stamp else "")
    return replace(request, key=key or str(uuid.uuid4()), sent_at=sent_at)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _time(value: datetime | str) -> str:
    if isinstance(value, str):
        return value
    if value.tzinfo is None:
        raise ValueError(f"{value} has no time zone")
    return value.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _text(amount: Amount | None) -> str | None:
    return None if amount is None else str(amount)


# ---- where each request goes over HTTP ----

_encode = msgspec.json.Encoder().encode

_COLLECTIONS: dict[type, str] = {
    wire.PlaceOrder: "/v1/orders",
    wire.OpenAccount: "/v1/accounts",
    wire.TransferFunds: "/v1/transfers",
    wire.AddAsset: "/v1/assets",
    wire.AddInstrument: "/v1/instruments",
    wire.SetReference: "/v1/references",
}


def _route(request: wire.AnyRequest) -> tuple[str, str, dict[str, str], bytes]:
    """Method, path, query and body. The key travels as a header."""
    if isinstance(request, wire.CancelOrder):
        params = {"account": request.account, "sent_at": request.sent_at}
        if request.original_client_order_id:
            return "DELETE", "/v1/orders", _given(params) | {"client_order_id": request.original_client_order_id}, b""
        return "DELETE", f"/v1/orders/{_segment(request.order_id)}", _given(params), b""
    if isinstance(request, wire.CancelOrders):
        params = {"account": request.account, "symbol": request.symbol, "sent_at": request.sent_at}
        return "DELETE", "/v1/orders", _given(params), b""
    body = _encode(replace(request, key=""))
    if isinstance(request, wire.ReplaceOrder):
        return "PATCH", f"/v1/orders/{request.order_id}" if request.order_id else "/v1/orders", {}, body
    if isinstance(request, wire.CloseWithdrawal):
        return "POST", f"/v1/transfers/{request.withdrawal_id}", {}, body
    if isinstance(request, wire.ChangeInstrument):
        return "PATCH", f"/v1/instruments/{_segment(request.symbol)}" if request.symbol else "/v1/instruments", {}, body
    return "POST", _COLLECTIONS[type(request)], {}, body


def _segment(name: str) -> str:
    """A name as one segment of a path, whatever it holds."""
    return quote(name, safe="")


def _given(params: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in params.items() if value}


def _decode(body: bytes, kind: type[View]) -> View:
    """Raises Unavailable: what came is not what a node says."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.MsgspecError as error:
        raise Unavailable(f"an answer that is not a node's: {error}") from error


def _convert(value: Any, kind: type[View]) -> View:
    try:
        return msgspec.convert(value, kind)
    except msgspec.MsgspecError as error:
        raise Unavailable(f"an answer that is not a node's: {error}") from error
