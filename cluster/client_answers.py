"""What a client may believe: every command ends as Done, Refused or Unknown, and this file says when."""

from enum import Enum

from msgspec import Struct

from cluster.wire import Answer

KEY_NOT_STORED = frozenset(
    {"key_required", "key_too_old", "sent_in_future", "key_quota_exceeded", "writes_stopped", "key_reused"}
)
"""Refusals of the machine that are not kept under the key: they say nothing about an earlier try. `key_reused` too:
what stands under the key may be that try, where the node read it otherwise (limits that it completes, say)."""

NODE_CODES_FROM = 1_000
"""In `code % 100_000`: below are the machine's codes, from here on those of the node that was asked."""


class Done(Struct, frozen=True):
    """It happened, it is on disk on a majority, and it stays. `answer.replay`: it had happened before."""

    key: str
    answer: Answer

    @property
    def id(self) -> str:
        """The order or withdrawal that the command made, or an empty string."""
        return self.answer.id

    @property
    def index(self) -> int:
        """Where in the log it is."""
        return self.answer.index


class Refused(Struct, frozen=True):
    """It did not happen and will not, under this key. `error` is the word to branch on.

    `key_reused`: another request has the key, and so has this one when it was sent first at another time.
    code: HTTP status and five digits. field: what the door refused, where it was one field.
    """

    key: str
    error: str
    message: str = ""
    code: int = 0
    field: str = ""
    replay: bool = False


class Unknown(Struct, frozen=True):
    """The deadline came first: it may have happened, or may yet.

    Send the same request again with its key, or ask `Client.command(key)`. Never send it under another key.
    The client that said so repeats it as it was; another one needs `sent_at` too, which is part of the request.
    """

    key: str
    cause: str = ""
    sent_at: str = ""


Outcome = Done | Refused | Unknown


class ClientError(Exception):
    """Base of what reads raise. Commands raise nothing for what the cluster says: see Outcome."""


class ReadRefused(ClientError):
    """The read was understood and refused: not found, not allowed, malformed. Asking again will not help."""

    def __init__(self, status: int, error: str, message: str, field: str = "") -> None:
        super().__init__(f"{error}: {message}" if message else error)
        self.status = status
        self.error = error
        self.message = message
        self.field = field


class Unavailable(ClientError):
    """No member gave an answer before the deadline. `cause` is the last reason that one gave, else how it failed."""

    def __init__(self, cause: str) -> None:
        super().__init__(f"no member answered in time; the last one: {cause}")
        self.cause = cause


class ChangeUnknown(ClientError):
    """The deadline came first: the cluster may have been changed, or may yet. Ask for the same again, or look."""

    def __init__(self, cause: str) -> None:
        super().__init__(f"whether it was done is not known: {cause}")
        self.cause = cause


class Verdict(Enum):
    """What one try means: its answer stands, nothing was logged so try again, or nobody knows."""

    final = 1
    again = 2
    unsure = 3


def judge(*, error: str, code: int, definite: bool = True) -> Verdict:
    """Judge one answer of a node, of HTTP or stream. The empty error is success."""
    if not error:
        return Verdict.final
    if not definite or error in ("outcome_unknown", "internal_error"):
        return Verdict.unsure
    if code // 100_000 in (408, 429, 503) and code % 100_000 >= NODE_CODES_FROM:
        return Verdict.again
    return Verdict.final


def outcome(key: str, answer: Answer, *, unsure: bool) -> Outcome:
    """Turn a final answer into an outcome. unsure: an earlier try with this key may have reached the log.

    Then a refusal counts only where a log entry decided it (it has an index) and it is kept under the key. What
    the door of a node refuses (token expired meanwhile, a name that this node does not know yet) says nothing
    about the first try.
    """
    if not answer.error:
        return Done(key, answer)
    stored = answer.index > 0 and answer.error not in KEY_NOT_STORED
    if unsure and not stored:
        return Unknown(key, answer.message or answer.error)
    return Refused(key, answer.error, answer.message, answer.code, answer.field, answer.replay)


def given_up(key: str, *, unsure: bool, error: str, message: str, code: int) -> Outcome:
    """The deadline came. Refused only where no try can have reached the log."""
    if unsure:
        return Unknown(key, message or error)
    return Refused(key, error, message, code)
