"""The lines of a run's history: what was called, what was answered, what was cut, in which phase."""

from typing import Any, Literal

from msgspec import Struct

Outcome = Literal["ok", "fail", "unknown"]
"""ok: the machine executed it; its answer, be it a refusal by a rule, stands in the log. fail: it was definitely not
done and will not be under this call (no quorum, overloaded, malformed). unknown: it may have happened, or may yet."""

Stage = Literal["start", "warmup", "faults", "healing", "final", "end"]


class Call(Struct, frozen=True, tag="call", tag_field="e", omit_defaults=True):
    """Written before the request leaves.

    op: counts up over the run. process: who calls, one call at a time; one whose call ended unknown is retired.
    at_ns: the machine's monotonic clock. workload: which one made it. kind: `transfer`, `place_order`, ...
    target: the member or gateway that was asked, or `any`. key: the idempotency key, for commands; no two scopes of a
    run use the same one.

    What checkers know. Commands, args as a client gives them (decimal strings): open_account, deposit, transfer
    (source, target, asset, amount), request_withdrawal, close_withdrawal, place_order, replace_order, cancel_order,
    cancel_orders, add_asset, add_instrument, change_instrument, set_reference. Their answer: the fields of a client's
    answer without key and index (id, status, filled_qty, ...), or {"error": word}.
    Reads, with args `consistency` (linearizable, session, local) and `index` in the return: read_account (account;
    answer: {"balances": {asset: [total, available]}}), read_order (order_id; status, filled_qty, leaves_qty, ...),
    read_outcome (of_key; the answer that the key had, with its "index", or {"none": true}), read_accounts (accounts,
    all at one index; {"balances": {account: {asset: [total, available]}}}), read_ledger (account, asset; {"rows":
    [[row, index, amount, balance]]}, the oldest first), read_open_orders and read_reference. A session read says in
    `seen` which index its reader knew. What asks a register has args `register`, `f` (read, write, cas), `value` and
    `expect`.
    At gateways: add and remove (user, item), set (user, name, value), read_items (user; {"items": [...],
    "values": {name: value}}) and any other kind, which counts for availability and for what it says of its age.
    """

    op: int
    process: int
    at_ns: int
    workload: str
    kind: str
    target: str
    key: str = ""
    args: dict[str, Any] = {}


class Return(Struct, frozen=True, tag="return", tag_field="e", omit_defaults=True):
    """Written after the answer came, or the deadline.

    index: where in the log it was executed, or the index that a read was served at; 0 where nothing says so.
    replay: the answer says that the key had been used. answer: what it said, as decimal strings. error: the word.
    age_ms: what a gateway said of the age of its answer; -1 where none is said.
    """

    op: int
    at_ns: int
    outcome: Outcome
    index: int = 0
    replay: bool = False
    answer: dict[str, Any] = {}
    error: str = ""
    age_ms: int = -1


class Fault(Struct, frozen=True, tag="fault", tag_field="e", omit_defaults=True):
    """number: which of the plan. did: what came of it, and how it was seen to bite (`seen` names the probe).

    detail of what cuts members off: `minority`, those that can reach no majority while it lasts, and `majority`, those
    that can. Of what stops or slows writes for all: neither.
    """

    number: int
    at_ns: int
    nemesis: str
    did: Literal["begin", "bite", "end", "failed"]
    targets: list[str] = []
    detail: dict[str, Any] = {}


class Phase(Struct, frozen=True, tag="phase", tag_field="e"):
    at_ns: int
    name: Stage


class Seen(Struct, frozen=True, tag="seen", tag_field="e", omit_defaults=True):
    """What the watcher read of a member's or gateway's status, some ten times a second. up: it answered."""

    at_ns: int
    name: str
    up: bool
    state: str = ""
    term: int = 0
    commit: int = 0
    applied: int = 0
    detail: dict[str, Any] = {}


Line = Call | Return | Fault | Phase | Seen


class Logged(Struct, frozen=True, omit_defaults=True):
    """A line of `log.jsonl`: one command of the committed log, in the order of its execution.

    position: its place within the entry. scope, key: under which it is stored. kind: of the command, as
    `place_order`. command: its fields, in whole units. stamp_us: the leader's, of the entry. sent_at_us: the client's.
    An entry without commands (a leader's first, a configuration) is one line of an empty kind, so that no index is
    missing. `chaos.check.logged` makes these lines of an entry's payload.
    """

    index: int
    position: int
    scope: str
    key: str
    kind: str
    command: dict[str, Any] = {}
    stamp_us: int = 0
    sent_at_us: int = 0


class Event(Struct, frozen=True, omit_defaults=True):
    """A line of `events.jsonl`: what a reader of the event feed got. source: the member it came from."""

    at_ns: int
    source: str
    index: int
    seq: int
    kind: str
    fields: dict[str, Any] = {}


class Replica(Struct, frozen=True, omit_defaults=True):
    name: str
    applied: int
    digest: str


class Final(Struct, frozen=True, omit_defaults=True):
    """`final.json`: what was read back after healing, and once more after all members were stopped and started.

    complete: every read that had to be made was made. outcomes: for each key that was ever used, what the cluster says
    of it: the answer with its "index", or {"none": true}: it was never executed. balances: account, asset, [total,
    available], as decimal strings, all read at `index`. digests: of each full replica, at equal index. sites: what each
    gateway has of the users' alerts and preferences: gateway, user, {"items": [...], "values": {name: value}}.
    """

    complete: bool
    why: str = ""
    index: int = 0
    outcomes: dict[str, dict[str, Any]] = {}
    balances: dict[str, dict[str, list[str]]] = {}
    digests: list[Replica] = []
    digests_after_restart: list[Replica] = []
    sites: dict[str, dict[str, Any]] = {}
    converged_ms: int = -1
