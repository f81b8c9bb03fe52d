"""One request to one member or gateway, once; and what its answer, or the lack of one, means for the history."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from chaos.history.records import Outcome
from chaos.workloads.connection import Answer, Connections, Lost, NotSent, path_of

RULES_BELOW = 1_000
"""In `code % 100_000`: below are the words of the rules, from here on those of whoever was asked."""
NODE_ANSWERS_AT = 0.85
"""Of the deadline: by then a member says what it knows, so that its word comes before we hang up."""

NOTHING_DONE = frozenset(
    {
        "malformed", "invalid_field", "unsupported_media_type", "too_large", "headers_too_large", "unauthenticated",
        "forbidden", "not_found", "method_not_allowed", "rate_limited", "overloaded", "too_many_connections",
        "no_leader", "no_quorum", "not_ready", "disk_low", "read_timeout", "command_not_found", "epoch_changed",
        "snapshot_required", "request_timeout", "member_not_found", "member_is_witness", "member_not_voter",
        "member_not_reached", "member_behind", "change_refused", "change_too_early",
        # of gateways
        "symbol_not_found", "no_node", "book_not_whole", "book_not_found", "past_gone", "too_many_rows", "no_parquet",
        "only_at_nodes", "too_many_alerts", "clock_ahead", "store_full", "outbox_full", "key_not_in_use",
        "answer_too_large",
    }
)  # fmt: skip
"""Words of a node or gateway that say for certain: nothing was logged, nothing was written."""
MAY_BE_DONE = frozenset({"internal_error", "outcome_unknown", "change_unknown", "store_failed"})
"""Words that say nothing either way. store_failed: the disk failed under a write, which may be on it all the same."""
ANSWERED_READS = frozenset({"command_not_found"})
"""Refusals of a read that are its answer: they say, with an index, that nothing of the name is there."""


class Request(Struct, frozen=True):
    """One thing to ask. path: with its parameters, encoded. scope: where the key is kept. role, accounts: of the token.

    indexed: an answer says where in the log it stands. args: what the history tells. kept: what it tells of the answer.
    """

    kind: str
    method: str
    path: str
    role: str
    args: dict[str, Any]
    kept: Callable[[Any], dict[str, Any]]
    accounts: tuple[str, ...] = ()
    body: dict[str, Any] | None = None
    key: str = ""
    scope: str = ""
    headers: dict[str, str] = {}
    indexed: bool = True

    @property
    def is_read(self) -> bool:
        return self.method == "GET"


def read_of(
    path: Sequence[str],
    kind: str,
    args: dict[str, Any],
    kept: Callable[[Any], dict[str, Any]],
    *,
    role: str = "auditor",
    accounts: tuple[str, ...] = (),
    params: Mapping[str, str] | None = None,
    headers: Mapping[str, str] | None = None,
    indexed: bool = True,
) -> Request:
    """path: its parts, not encoded, and params likewise. The rest as of Request."""
    return Request(
        kind=kind,
        method="GET",
        path=path_of(*path, params=params),
        role=role,
        args=args,
        kept=kept,
        accounts=accounts,
        headers=dict(headers or {}),
        indexed=indexed,
    )


class Reply(Struct, frozen=True):
    """How one request ended, in the words of the history. session: a token that lets reads see at least this."""

    outcome: Outcome
    index: int = 0
    replay: bool = False
    answer: dict[str, Any] = {}
    error: str = ""
    age_ms: int = -1
    session: str = ""


class _Refusal(Struct):
    error: str
    code: int
    definite: bool = True


_decode = msgspec.json.Decoder().decode
_decode_refusal = msgspec.json.Decoder(_Refusal).decode


async def operate(
    connections: Connections, base: str, request: Request, *, token: str, timeout_s: float, waits_s: float | None = None
) -> Reply:
    """Send it once and say how it ended. waits_s: how long a command may wait there, where it is not our deadline."""
    path = request.path
    headers = {"Authorization": f"Bearer {token}", **request.headers}
    if request.key:
        headers["Idempotency-Key"] = request.key
        waits_ms = max(10, int(1000 * NODE_ANSWERS_AT * (timeout_s if waits_s is None else waits_s)))
        path += f"{'&' if '?' in path else '?'}timeout_ms={waits_ms}"
    body = b""
    if request.body is not None:
        headers["Content-Type"] = "application/json"
        body = msgspec.json.encode(request.body)
    try:
        said = await connections.exchange(base, request.method, path, headers=headers, body=body, timeout_s=timeout_s)
    except NotSent as error:
        return Reply("fail", error=f"not_sent: {error}"[:120])
    except Lost as error:
        return Reply("fail" if request.is_read else "unknown", error=f"lost: {error}"[:120])
    return judged(request, said)


def judged(request: Request, said: Answer) -> Reply:
    """What an answer means. What nobody of ours says is `unknown` to a command, and no answer to a read."""
    index = _index(said.headers)
    answer: dict[str, Any] | None = None
    error = f"not_ours: HTTP {said.status}"
    unsure: Outcome = "fail" if request.is_read else "unknown"
    if 200 <= said.status < 300:
        answer = _kept(request, said.body)
        if answer is None or (request.indexed and not index):
            return Reply(unsure, error=error)
        return Reply(
            "ok",
            index,
            said.headers.get("idempotency-replayed") == "true",
            answer,
            age_ms=_age_ms(said.headers),
            session=said.headers.get("x-session-token", ""),
        )
    refusal = _refusal(said)
    if refusal is None:
        return Reply(unsure, error=error)
    word = refusal.error
    if refusal.definite and refusal.code % 100_000 < RULES_BELOW and index and not request.is_read:
        # The rules said no, at this place in the log: the command was executed, and that is its answer.
        return Reply(
            "ok",
            index,
            said.headers.get("idempotency-replayed") == "true",
            {"error": word},
            session=said.headers.get("x-session-token", ""),
        )
    if request.is_read:
        if word in ANSWERED_READS and index:
            return Reply("ok", index, answer={"none": True})
        return Reply("fail", error=word)
    # A rule's word without an index is the door's: it was not logged.
    known = refusal.definite and (word in NOTHING_DONE or refusal.code % 100_000 < RULES_BELOW)
    return Reply("fail" if known and word not in MAY_BE_DONE else "unknown", error=word)


def _kept(request: Request, body: bytes) -> dict[str, Any] | None:
    """What the history tells of an answer; None: it is none of ours."""
    try:
        return request.kept(_decode(body))
    except (msgspec.MsgspecError, KeyError, TypeError, ValueError, ArithmeticError, AttributeError):
        return None


def _refusal(said: Answer) -> _Refusal | None:
    if said.status < 400:
        return None
    try:
        found = _decode_refusal(said.body)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    # A code names the status that it came with: this is no error of somebody else's that looks like ours.
    return found if found.error and found.code // 100_000 == said.status else None


def _index(headers: Mapping[str, str]) -> int:
    text = headers.get("x-log-index", "")
    return int(text) if text.isascii() and text.isdigit() else 0


def _age_ms(headers: Mapping[str, str]) -> int:
    text = headers.get("x-staleness-ms", "")
    return int(text) if text.isascii() and text.isdigit() else -1
