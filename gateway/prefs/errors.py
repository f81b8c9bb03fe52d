"""How preferences and alerts say no: one exception per word, each with its HTTP status."""


class PrefsError(Exception):
    """Base of what a client may be told. Nothing was changed, unless the class says otherwise.

    status: HTTP. error: the word that programs branch on. field: the part of the request that is meant, if any.
    """

    status = 500
    error = "internal_error"
    retry_after_s = 0.0

    def __init__(self, message: str, *, field: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.field = field


class InvalidPreference(PrefsError):
    """No such preference, or a value that it can't have."""

    status = 422
    error = "invalid_field"


class InvalidAlert(PrefsError):
    """An alert whose parts contradict each other, or are out of their bounds."""

    status = 422
    error = "invalid_field"


class TooManyAlerts(PrefsError):
    """The user has as many alerts as one may have. Remove one first."""

    status = 422
    error = "too_many_alerts"


class NoSuchAlert(PrefsError):
    status = 404
    error = "not_found"


class ClockAhead(PrefsError):
    """A stamp that is further ahead of this site's clock than clocks may differ."""

    status = 422
    error = "clock_ahead"


class StoreBusy(PrefsError):
    """So many writes wait for the disk that no more are taken."""

    status = 503
    error = "overloaded"
    retry_after_s = 1.0


class StoreFull(PrefsError):
    """No room on the disk, or in the address space kept for the store. Writes are taken again when there is room."""

    status = 503
    error = "store_full"
    retry_after_s = 5.0


class StoreFailed(PrefsError):
    """The disk failed under a write. Nothing is written any more until the gateway is started again; reads go on."""

    status = 503
    error = "store_failed"
    retry_after_s = 30.0


class StoreRefused(Exception):
    """The folder can't be used: another's, in use, or damaged. Raised when it is opened; the message says which."""
