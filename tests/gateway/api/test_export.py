"""Exports of an account: exact at an index, never a spreadsheet's formula, never half a file taken for a whole one."""

import csv
import io
from pathlib import Path

import aiohttp
import pytest

from gateway.api.history import _cell
from gateway.api.relay import Said
from node.errors import ReadTimeout
from tests.gateway.api.sites import market, trades
from tests.node.solo import token


def rows(raw: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(raw.decode(), newline="")))


async def test_trades_and_ledger_up_to_an_index(tmp_path: Path) -> None:
    async with market(tmp_path) as (solo, (site,)):
        await trades(solo, qty=1)
        first = solo.log.index
        await trades(solo, qty=2)
        found = await site.ask("/v1/export?kind=trades")
        assert [row["qty"] for row in rows(found.raw)] == ["2", "1"] and rows(found.raw)[0]["side"] == "buy"
        assert "trades-anna-" in found.headers["Content-Disposition"] and found.headers["X-As-Of"]
        then = await site.ask(f"/v1/export?kind=trades&index={first}")
        assert [row["qty"] for row in rows(then.raw)] == ["1"] and then.headers["X-Log-Index"] == str(first)
        ledger = rows((await site.ask(f"/v1/export?kind=ledger&index={first}")).raw)
        assert ledger[-1]["reason"] == "deposit" and {row["asset"] for row in ledger} == {"USD", "AAPL"}
        late = await site.ask(f"/v1/export?kind=trades&index={solo.log.index + 1_000}")
        assert (late.status, late.body["error"]) == (503, "read_timeout")


async def test_lots_are_of_the_newest_index(tmp_path: Path) -> None:
    async with market(tmp_path) as (solo, (site,)):
        await trades(solo, qty=3)
        await site.reaches(solo.log.index)
        found = await site.ask("/v1/export?kind=lots")
        (deposited, bought) = rows(found.raw)
        assert (deposited["qty"], deposited["cost"]) == ("1000", "")
        assert (bought["qty"], bought["cost"], bought["currency"]) == ("3", "300", "USD")
        past = await site.ask("/v1/export?kind=lots&index=1")
        assert (past.status, past.body["error"]) == (410, "past_gone")


async def test_parquet_has_the_same_rows(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="the extra `exports` is not installed")
    async with market(tmp_path) as (solo, (site,)):
        await trades(solo, qty=3)
        found = await site.ask("/v1/export?kind=trades&format=parquet")
        plain = rows((await site.ask("/v1/export?kind=trades")).raw)
        table = parquet.read_table(io.BytesIO(found.raw)).to_pylist()
        assert [{name: str(value) for name, value in row.items()} for row in table] == plain


async def test_an_export_that_is_cut_off_does_not_look_whole(tmp_path: Path) -> None:
    async with market(tmp_path) as (solo, (site,)):
        await trades(solo)
        relay = site.app.api.relay
        send = relay.send
        asked: list[str] = []

        async def failing(method: str, path: str, **more: object) -> Said:
            if asked:
                raise ReadTimeout("gone")
            asked.append(path)
            said = await send(method, path, **more)  # type: ignore[arg-type]
            body = said.body.replace(b'"next_page_token":null', b'"next_page_token":"1"')
            return Said(said.status, said.headers, body, said.node)

        relay.send = failing  # type: ignore[method-assign]
        headers = {"Authorization": f"Bearer {token('trader', 'anna')}"}
        with pytest.raises(aiohttp.ClientPayloadError):
            async with site.session.get(site.url + "/v1/export", headers=headers) as response:
                await response.read()


def test_a_cell_is_never_a_formula() -> None:
    cells = {"=1+1": "'=1+1", "@x": "'@x", "-5.25": "-5.25", "+3": "+3", "-x": "'-x", "10": "10", "": ""}
    assert {text: _cell(text) for text in cells} == cells
