"""How a node says no: one exception per word, each true about whether the command can still take effect."""

from cluster import wire


class NodeError(Exception):
    """Base of all that a client may be told apart from a rule's refusal.

    definite: nothing was logged and nothing was forwarded, so the command can't take effect.
    error: the word that programs branch on. number: its five digits on the wire; those below 1000 are the rules'.
    """

    definite: bool = True
    status: int = 500
    number: int = 1000
    error: str = "internal_error"
    retry_after_s: float = 0.0

    def __init__(self, message: str, *, field: str = "", key: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.key = key
        self.headers: dict[str, str] = {}
        """What an HTTP answer says besides the body."""
        if retry_after_s is not None:
            self.retry_after_s = retry_after_s

    @property
    def code(self) -> int:
        """The HTTP status and five digits."""
        return self.status * 100_000 + self.number


class InternalError(NodeError):
    """We were wrong. Whether the command took effect is not known."""

    definite = False


class Malformed(NodeError):
    """Not the JSON or msgpack of this request, or a field of the wrong type or length."""

    status = 400
    number = 1001
    error = "malformed"


class InvalidField(NodeError):
    """A well-formed field whose value can't be taken: out of its bound, not on the tick, two that contradict."""

    status = 422
    number = 1002
    error = "invalid_field"


class UnsupportedMediaType(NodeError):
    status = 415
    number = 1003
    error = "unsupported_media_type"


class TooLarge(NodeError):
    status = 413
    number = 1004
    error = "too_large"


class HeadersTooLarge(NodeError):
    status = 431
    number = 1005
    error = "headers_too_large"


class Unauthenticated(NodeError):
    """No token, or one that can't be believed."""

    status = 401
    number = 1006
    error = "unauthenticated"


class Forbidden(NodeError):
    """The role may never do this. An account out of reach is answered like one that does not exist instead."""

    status = 403
    number = 1007
    error = "forbidden"


class NotFound(NodeError):
    """No such path, or nothing of that name."""

    status = 404
    number = 1008
    error = "not_found"


class MethodNotAllowed(NodeError):
    status = 405
    number = 1009
    error = "method_not_allowed"


class RateLimited(NodeError):
    """The principal's token bucket is empty. Nothing was logged."""

    status = 429
    number = 1010
    error = "rate_limited"
    retry_after_s = 1.0


class Overloaded(NodeError):
    """A bounded queue is full. Nothing was logged."""

    status = 429
    number = 1011
    error = "overloaded"
    retry_after_s = 1.0


class TooManyConnections(NodeError):
    status = 429
    number = 1012
    error = "too_many_connections"
    retry_after_s = 5.0


class NoLeader(NodeError):
    """No leader in time. Nothing was logged or forwarded."""

    status = 503
    number = 1020
    error = "no_leader"
    retry_after_s = 1.0


class NoQuorum(NodeError):
    """No majority in reach in time. Nothing was logged or forwarded."""

    status = 503
    number = 1021
    error = "no_quorum"
    retry_after_s = 1.0


class OutcomeUnknown(NodeError):
    """The wait ended before the outcome was known; the command may still take effect.

    Ask again with the same key: the machine answers a repeat with its first result.
    """

    definite = False
    status = 503  # not 504: client libraries repeat that by themselves
    number = 1022
    error = "outcome_unknown"
    retry_after_s = 1.0


class NotReady(NodeError):
    """The node starts, drains, or is a witness. Nothing was logged or forwarded."""

    status = 503
    number = 1023
    error = "not_ready"
    retry_after_s = 1.0


class DiskLow(NodeError):
    """Free space is under the low-water mark: writes are refused until there is room. Nothing was logged."""

    status = 503
    number = 1024
    error = "disk_low"
    retry_after_s = 10.0


class ReadTimeout(NodeError):
    """A read could not be confirmed, or the index of a session token not be reached, in time."""

    status = 503
    number = 1025
    error = "read_timeout"
    retry_after_s = 1.0


class CommandNotFound(NodeError):
    """The key is not known at the index that was read."""

    status = 404
    number = 1030
    error = "command_not_found"


class EpochChanged(NodeError):
    """A token or position of another epoch: the cluster was restored since. Start anew from a snapshot."""

    status = 409
    number = 1031
    error = "epoch_changed"


class SnapshotRequired(NodeError):
    """The position is older than what is kept."""

    status = 410
    number = 1032
    error = "snapshot_required"


class RequestTimeout(NodeError):
    """The request did not arrive in time. Nothing was logged."""

    status = 408
    number = 1033
    error = "request_timeout"


class MemberNotFound(NodeError):
    """The cluster has no member of this name. Nothing was logged."""

    status = 404
    number = 1040
    error = "member_not_found"


class MemberIsWitness(NodeError):
    """A witness holds no state: it can't lead for clients. Nothing was done."""

    status = 409
    number = 1041
    error = "member_is_witness"


class MemberNotVoter(NodeError):
    """A learner or a read replica can't lead. Nothing was done."""

    status = 409
    number = 1042
    error = "member_not_voter"


class MemberNotReached(NodeError):
    """The leader has no connection to this member, or it is on its way out. Nothing was done."""

    status = 409
    number = 1043
    error = "member_not_reached"


class MemberBehind(NodeError):
    """This member lacks too much of the log. Nothing was done: try again when it has caught up."""

    status = 409
    number = 1044
    error = "member_behind"


class ChangeRefused(NodeError):
    """This change of the members can't be; the message says why. Nothing was logged."""

    status = 409
    number = 1045
    error = "change_refused"


class ChangeTooEarly(NodeError):
    """This change of the members can't be yet: another is under way, or a learner lacks something. Nothing was logged;
    try again."""

    status = 409
    number = 1047
    error = "change_too_early"
    retry_after_s = 1.0


class ChangeUnknown(NodeError):
    """The time was over before the change was known to hold; it may yet.

    Ask again for the same change: it is made once, however often it is asked for.
    """

    definite = False
    status = 503
    number = 1046
    error = "change_unknown"
    retry_after_s = 1.0


def error_body(error: NodeError, request_id: str = "") -> wire.ErrorBody:
    return wire.ErrorBody(
        code=error.code,
        error=error.error,
        message=error.message,
        request_id=request_id,
        field=error.field,
        key=error.key,
        definite=error.definite,
    )
