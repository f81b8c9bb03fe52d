"""What is told to a user, whatever the channel: one id by which receivers drop repeats, and what happened."""

from enum import StrEnum
from typing import Annotated

from msgspec import Meta, Struct

NOTICE_ID_CHARS_MAX = 160


class Kind(StrEnum):
    price_alert = "price_alert"
    order_fill = "order_fill"


class Notice(Struct, frozen=True):
    """notice_id: unique per user, and the same when the other site tells the same. at_us: when it happened.

    subject: one line for people. details: fields for programs; prices and quantities are decimal strings.
    """

    notice_id: Annotated[str, Meta(min_length=1, max_length=NOTICE_ID_CHARS_MAX)]
    user: str
    kind: Kind
    at_us: int
    subject: str
    details: dict[str, str | int | bool]


class DeliveryError(Exception):
    """It was not delivered."""


class Later(DeliveryError):
    """The other end is away or busy. retry_after_s: what it asked for, 0 when it asked for nothing."""

    def __init__(self, message: str, *, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Never(DeliveryError):
    """The other end will not take it, however often it is asked; or it may not be asked."""
