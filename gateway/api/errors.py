"""How a gateway says no beyond what nodes say: numbers from 1050 on; the refusals of preferences in the same shape."""

from gateway.prefs.errors import PrefsError
from node import errors
from node.errors import NodeError


class AccountNotFound(NodeError):
    """No such account, or one that is out of reach: nobody is told which. The rules' own word and number."""

    status = 404
    number = 20
    error = "account_not_found"


class SymbolNotFound(NodeError):
    """Nobody quotes it, nobody traded it, and it is no instrument of ours."""

    status = 404
    number = 1050
    error = "symbol_not_found"


class NoNode(NodeError):
    """No node could be reached. Nothing was sent."""

    status = 503
    number = 1051
    error = "no_node"
    retry_after_s = 1.0


class BookNotWhole(NodeError):
    """A part of this book was missed; a snapshot is on its way. It is not shown before it is whole."""

    status = 503
    number = 1052
    error = "book_not_whole"
    retry_after_s = 1.0


class BookNotFound(NodeError):
    """This venue gives no book of this symbol."""

    status = 404
    number = 1057
    error = "book_not_found"


class PastGone(NodeError):
    """This gateway shows the newest state only; what is asked for lies before it."""

    status = 410
    number = 1053
    error = "past_gone"


class TooManyRows(NodeError):
    """More rows than one export holds."""

    status = 422
    number = 1054
    error = "too_many_rows"


class NoParquet(NodeError):
    """This gateway was installed without what writes Parquet. CSV is always there."""

    status = 501
    number = 1055
    error = "no_parquet"


class KeyNotInUse(NodeError):
    """This gateway does not seal with that key; nothing was sealed anew."""

    status = 409
    number = 1056
    error = "key_not_in_use"


class OnlyAtNodes(NodeError):
    """This is done at a node, not through a gateway. Nothing was sent."""

    status = 403
    number = 1058
    error = "only_at_nodes"


class AnswerTooLarge(NodeError):
    """A node's answer has more bytes than this gateway passes on."""

    status = 502
    number = 1059
    error = "answer_too_large"


_NUMBERS = {
    "invalid_field": errors.InvalidField.number,
    "not_found": errors.NotFound.number,
    "overloaded": errors.Overloaded.number,
    "too_many_alerts": 1060,
    "clock_ahead": 1061,
    "store_full": 1062,
    "store_failed": 1063,
    "outbox_full": 1064,
}


def of_prefs(error: PrefsError) -> NodeError:
    """The same word, status and field in the shape of all answers."""
    made = NodeError(error.message, field=error.field, retry_after_s=error.retry_after_s)
    made.status, made.error = error.status, error.error
    made.number = _NUMBERS.get(error.error, NodeError.number)
    return made
