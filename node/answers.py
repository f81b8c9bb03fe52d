"""Answers of the past by key: what ends every "unknown", for as long as keys are kept."""

from typing import Protocol

from cluster import wire
from node.catalogue import Catalogue
from node.outcomes import RuleRefused, rendered
from node.submit import Outcome, Prepared
from statemachine.codec import Envelope, fingerprint, key_digest, oldest_bucket
from statemachine.records import KeyRecord, OrderRecord
from statemachine.results import (
    AnyResult,
    Canceled,
    Moved,
    Placed,
    Refused,
    Replaced,
    WithdrawalPending,
)


class Keys(Protocol):
    def key(self, digest: bytes, bucket_min: int) -> KeyRecord | None: ...


class Results(Protocol):
    def result(self, index: int, ordinal: int) -> AnyResult | None: ...


class State(Protocol):
    @property
    def time_us(self) -> int: ...

    def order_of_key(self, account_id: str, key: str) -> OrderRecord | None: ...


class Answers:
    """Finds what a key was answered, as of what is applied here."""

    def __init__(self, keys: Keys, results: Results, state: State, catalogue: Catalogue) -> None:
        self._keys = keys
        self._results = results
        self._state = state
        self._catalogue = catalogue

    def result(self, index: int, ordinal: int) -> AnyResult | None:
        return self._results.result(index, ordinal)

    def of_key(self, scope: str, key: str) -> Outcome | None:
        """The first answer to this key, or None when it is not known within retention."""
        record = self._keys.key(key_digest(scope, key), oldest_bucket(self._state.time_us))
        if record is None:
            return None
        result = self._results.result(record.index, record.ordinal)
        return None if result is None else Outcome(record.index, result, True)

    def of_envelope(self, envelope: Envelope) -> Outcome | None:
        """The answer that this very command had, or None when its key is free or another's."""
        record = self._keys.key(key_digest(envelope.scope, envelope.key), oldest_bucket(self._state.time_us))
        if record is None or record.fingerprint != fingerprint(envelope.body, envelope.sent_at_us):
            return None
        return self.of_key(envelope.scope, envelope.key)

    def order_of_key(self, account: str, key: str, *, closed: bool) -> OrderRecord | None:
        """The open order that was placed or last replaced under a key. closed: or else the one that the key made,
        for as long as keys are kept; that may read the disk."""
        order = self._state.order_of_key(account, key)
        if order is None and closed:
            found = self.of_key(account, key)
            if found is not None and isinstance(found.result, Placed | Replaced):
                return self._catalogue.order(found.result.order_id)
        return order

    def complete(self, prepared: Prepared, outcome: Outcome) -> None:
        """A cancel may have come before its order was known here. It is by now: the answer can tell quantities."""
        if prepared.instrument is None and isinstance(outcome.result, Canceled):
            order_id = outcome.result.order_id
            prepared.instrument = self._catalogue.market_of_order(prepared.account, order_id, closed=True)

    def render(self, scope: str, key: str, outcome: Outcome) -> wire.Answer:
        """An answer of the past, in the units of the instrument or asset that it is about."""
        result = outcome.result
        account = "" if scope.startswith("@") else scope
        if isinstance(result, Refused):
            error = RuleRefused(result.code, key=key)
            return wire.Answer(
                key=key,
                index=outcome.index,
                replay=True,
                error=error.error,
                code=error.code,
                message=error.message,
                field=error.field,
            )
        market = None
        scale = 0
        if isinstance(result, Placed | Replaced | Canceled):
            order = self._catalogue.order(result.order_id)
            market = None if order is None else self._catalogue.market(order.symbol)
        elif isinstance(result, Moved | WithdrawalPending):
            money = self._catalogue.money(result.asset)
            scale = 0 if money is None else money.scale
        return rendered(key, outcome.index, True, result, market=market, scale=scale, account=account)
