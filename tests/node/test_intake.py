"""A node that is behind does not say that something does not exist before it has looked at the group's newest state."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from cluster import wire
from cluster.consensus.engine import NoQuorum as EngineNoQuorum
from node.auth import Principal, Role
from node.errors import InvalidField, NoQuorum
from node.outcomes import RuleRefused
from node.submit import Prepared
from statemachine.codec import decode_command
from statemachine.commands import SetLimits
from tests.node.fakes import SoloEngine, make_config, running

ALICE = Principal(subject="a", role=Role.trader, accounts=frozenset({"alice"}))


class Behind(SoloEngine):
    """Holds entries back; a read index brings them in, as catching up does."""

    async def read_index(self, *, timeout_ms: int) -> int:
        if self.refuse is not None:
            raise self.refuse
        if self.held:
            self.release()
            self.hold = True
        return self.index


def order(key: str, symbol: str = "ACME-USD", **more: Any) -> wire.PlaceOrder:
    return wire.PlaceOrder(key=key, symbol=symbol, side="buy", type="limit", qty="1", limit_price="1", **more)


def test_the_newest_state_decides(tmp_path: Path) -> None:
    async def main() -> None:
        engine = Behind()
        async with running(make_config(tmp_path), engine) as caller:
            node = caller.node
            operator: dict[str, Any] = {"role": "operator", "accounts": ("*",)}
            for asset in ("USD", "ACME"):
                await caller.ok("POST", "/v1/assets", {"asset": asset, "scale": 2}, **operator)
            engine.hold = True
            listing = {"symbol": "ACME-USD", "base": "ACME", "quote": "USD", "tick_size": "0.01", "lot_size": "1"}
            listed = asyncio.create_task(caller.ok("POST", "/v1/instruments", listing, **operator))
            await asyncio.sleep(0.05)
            with pytest.raises(RuleRefused, match="no such symbol"):
                node.door.envelope(order("k"), ALICE)
            requests = [order("a"), order("b", "NONE"), order("c", account="bob")]
            taken = await node.intake.take(requests, ALICE)
            assert isinstance(taken[0], Prepared)
            assert isinstance(taken[1], RuleRefused)
            assert taken[1].error == "instrument_not_found"
            assert isinstance(taken[2], RuleRefused)
            assert taken[2].error == "account_not_found"
            await listed
            engine.hold = False
            assert isinstance(await node.intake.one(order("e"), ALICE), Prepared)
            with pytest.raises(InvalidField):
                await node.intake.one(order("e", sent_at="x"), ALICE)
            # What can't be settled is not said not to exist.
            engine.refuse = EngineNoQuorum()
            taken = await node.intake.take([order("f"), order("g", "NONE")], ALICE)
            assert [type(one) for one in taken] == [Prepared, NoQuorum]
            with pytest.raises(NoQuorum):
                await node.intake.one(order("g", "NONE"), ALICE)

    asyncio.run(main())


def test_limits_are_completed_from_the_newest_state(tmp_path: Path) -> None:
    """Another operator's band, not applied here yet, must not be put back by who changes something else."""

    async def main() -> None:
        engine = Behind()
        async with running(make_config(tmp_path), engine) as caller:
            node = caller.node
            operator = Principal(subject="o", role=Role.operator, accounts=frozenset({"*"}))
            await caller.list_market()
            first = wire.ChangeInstrument(key="a", symbol="ACME-USD", limits=wire.LimitsBody(band_bps=700))
            mine = wire.ChangeInstrument(key="b", symbol="ACME-USD", limits=wire.LimitsBody(open_orders_max=7))
            prepared = await node.intake.one(first, operator)
            engine.hold = True
            others = node.submitter.start([prepared], timeout_ms=2_000)
            await asyncio.sleep(0.05)
            present = node.catalogue.limits("ACME-USD")
            assert present is not None
            assert present.band_bps != 700
            taken = await node.intake.take([mine], operator)
            assert isinstance(taken[0], Prepared)
            command = decode_command(taken[0].envelope.body)
            assert isinstance(command, SetLimits)
            assert (command.limits.band_bps, command.limits.open_orders_max) == (700, 7)
            await others
            # Where the newest state is out of reach nothing is guessed; what names all limits needs none.
            engine.refuse = EngineNoQuorum()
            with pytest.raises(NoQuorum):
                await node.intake.one(mine, operator)
            assert [type(one) for one in await node.intake.take([mine], operator)] == [NoQuorum]
            whole = wire.LimitsBody(
                qty_min="1",
                qty_max="9",
                notional_min="1",
                notional_max="9",
                open_orders_max=5,
                band_bps=0,
                collar_bps=0,
                reference_age_ms_max=1_000,
            )
            change = wire.ChangeInstrument(key="c", symbol="ACME-USD", limits=whole)
            assert isinstance(await node.intake.one(change, operator), Prepared)

    asyncio.run(main())
