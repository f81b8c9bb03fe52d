"""Takes commands to the log and brings their answers back, and knows at each moment whether one may take effect."""

from collections.abc import Sequence

from msgspec import Struct

from cluster import wire
from node.errors import NodeError
from statemachine.codec import Envelope
from statemachine.records import InstrumentRecord
from statemachine.results import Result


class Prepared:
    """One command on its way: what the client asked, what goes into the log, and what its answer is written with.

    request is None for what a stream or the node itself makes. instrument is None where none is named.
    scale: decimals of the asset that a transfer names.
    """

    __slots__ = ("account", "envelope", "instrument", "is_cancel", "request", "scale")

    def __init__(
        self,
        envelope: Envelope,
        request: wire.AnyRequest | None = None,
        *,
        account: str = "",
        instrument: InstrumentRecord | None = None,
        scale: int = 0,
        is_cancel: bool = False,
    ) -> None:
        self.envelope = envelope
        self.request = request
        self.account = account
        self.instrument = instrument
        self.scale = scale
        self.is_cancel = is_cancel


class Outcome(Struct, frozen=True, gc=False):
    """How one command ended.

    index: the log entry that decided it; 0 when result is a NodeError.
    replay: the key was used before and this is its first answer.
    """

    index: int
    result: Result | NodeError
    replay: bool = False


class Submitter:
    """Submits commands and waits for the local apply of the batch that holds them."""

    async def submit(self, prepared: Sequence[Prepared], *, timeout_ms: int, traceparent: str = "") -> list[Outcome]:
        """Put the commands in the log, in order, and wait until they are applied here or the time is over.

        Never raises for a command: each has its own outcome, in the order given.
        """
        raise NotImplementedError
