"""/v1/history/trades and /v1/export: an account's own past, from a node; its newest from here when no node answers."""

import asyncio
import csv
import io
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
from aiohttp import web
from msgspec import Struct

from gateway.api import context
from gateway.api.context import ACCOUNT_READS, CORE, RELAY, TRADER_READS, Age
from gateway.api.errors import NoNode, NoParquet, PastGone, TooManyRows
from gateway.api.portfolio import lot_rows, reflects
from gateway.api.relay import read_of
from node.errors import NodeError, ReadTimeout

PAGE_ROWS = 1_000
PARQUET_ROWS_MAX = 500_000
Rows = list[dict[str, Any]]

COLUMNS = {
    "trades": ("id", "symbol", "side", "price", "qty", "fee", "liquidity", "order_id", "at", "index"),
    "ledger": ("row", "asset", "amount", "balance", "reason", "reference", "at", "index"),
    "lots": ("asset", "qty", "cost", "currency", "acquired_at"),
}


class _Page(Struct, frozen=True):
    items: Rows
    next_page_token: str | None = None
    past_gone: bool = False


_decode_page = msgspec.json.Decoder(_Page).decode


async def trades(request: web.Request) -> web.Response:
    """An account's fills, newest first, paged; a node's answer, else what this gateway saw, marked with its age."""
    context.only(request, "account", "symbol", "limit", "page_token", "consistency")
    account = context.account_of(request, *TRADER_READS)
    core, relay = request.app[CORE], request.app[RELAY]
    query = request.rel_url.update_query(account=account).raw_query_string
    try:
        return read_of(request, await relay.send("GET", "/v1/trades", query=query, headers=request.headers))
    except (NoNode, ReadTimeout) as error:
        why = await reflects(request)
        if why or "page_token" in request.query:
            raise ReadTimeout(f"no node answered, and this gateway holds the newest fills only {why}") from error
    symbol = request.query.get("symbol", "")
    limit = context.whole(request, "limit", 100, 1, PAGE_ROWS)
    rows = [row for row in core.history.newest(account) if symbol in ("", row["symbol"])][:limit]
    standing = core.projection.standing
    # Never the whole past: a reader must not take it for one.
    body = {"items": rows, "next_page_token": None, "past_gone": True, "source": "gateway"}
    return context.respond(request, body, Age(standing.as_of_us), headers={"X-Log-Index": str(standing.index)})


# ---- exports ----


async def export(request: web.Request) -> web.StreamResponse:
    """Trades or ledger rows of an account up to an index, or its lots now; CSV is streamed, the newest first."""
    context.only(request, "account", "kind", "format", "index")
    account = context.account_of(request, *ACCOUNT_READS)
    kind = context.word(request, "kind", COLUMNS, "trades")
    is_parquet = context.word(request, "format", ("csv", "parquet"), "csv") == "parquet"
    index = context.whole(request, "index", 0, 1, 1 << 62)
    write = _parquet_writer() if is_parquet else None
    if kind == "lots":
        first, pages, index, age = await _lots(request, account, index)
    else:
        first, pages, index, age = await _from_node(request, account, kind, index)
    name = f"{kind}-{account}-{index}.{'parquet' if is_parquet else 'csv'}"
    headers = {"Content-Disposition": f'attachment; filename="{name}"', "X-Log-Index": str(index)}
    columns = COLUMNS[kind]
    if write is not None:
        rows = list(first)
        async for page in pages:
            rows += page
            if len(rows) > PARQUET_ROWS_MAX:
                raise TooManyRows(f"more than {PARQUET_ROWS_MAX} rows: take CSV, which is streamed", field="format")
        raw = await asyncio.get_running_loop().run_in_executor(None, write, columns, rows)
        response = web.Response(body=raw, headers=headers, content_type="application/vnd.apache.parquet")
        context.aged(response, age)
        return response
    stream = web.StreamResponse(headers=headers | {"Content-Type": "text/csv; charset=utf-8"})
    context.aged(stream, age)
    await stream.prepare(request)
    await stream.write(_csv(columns, first, head=True))
    try:
        async for page in pages:
            await stream.write(_csv(columns, page))
    except NodeError:
        # The status is out. A chunked body without its end is the only way left to say that this is not all.
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionError("an export could not be finished") from None
    await stream.write_eof()
    return stream


Pages = tuple[Rows, AsyncIterator[Rows], int, Age]


async def _lots(request: web.Request, account: str, index: int) -> Pages:
    core = request.app[CORE]
    why = await reflects(request)
    standing = core.projection.standing
    if why or (index > standing.index and not await core.projection.wait_for(index, timeout_ms=1_000)):
        raise ReadTimeout(why or f"this gateway is at index {standing.index}, not at {index} yet")
    standing = core.projection.standing
    if 0 < index < standing.index:
        raise PastGone(f"lots are kept at the newest index only, now {standing.index}", field="index")

    return lot_rows(core, account), _nothing(), standing.index, Age(standing.as_of_us)


async def _nothing() -> AsyncIterator[Rows]:
    for page in list[Rows]():
        yield page


async def _from_node(request: web.Request, account: str, kind: str, index: int) -> Pages:
    """The first page, and the others as they are asked for; rows above the index are left out."""
    relay, age = request.app[RELAY], context.now()
    headers = {name: request.headers[name] for name in ("Authorization", "X-Session-Token") if name in request.headers}

    async def page(token: str) -> tuple[_Page, int]:
        query = f"account={account}&limit={PAGE_ROWS}" + (f"&page_token={token}" if token else "")
        said = await relay.send("GET", f"/v1/{kind}", query=query, headers=headers)
        if said.status != 200:
            raise _refused(said.status, said.body)
        return _decode_page(said.body), int(said.headers.get("X-Log-Index", "0"))

    found, at_index = await page("")
    if index > at_index:
        raise ReadTimeout(f"the node is at index {at_index}, not at {index} yet")
    upto = index or at_index

    async def others() -> AsyncIterator[Rows]:
        now = found
        while now.next_page_token:
            now, _ = await page(now.next_page_token)
            yield [row for row in now.items if row["index"] <= upto]

    return [row for row in found.items if row["index"] <= upto], others(), upto, age


def _refused(status: int, body: bytes) -> NodeError:
    """A node's refusal as ours: its word, message, status and field."""
    try:
        said = msgspec.json.decode(body, type=dict[str, Any])
    except msgspec.MsgspecError:
        said = {}
    made = NodeError(str(said.get("message", "a node refused")), field=str(said.get("field", "")))
    made.status, made.error = status, str(said.get("error", "internal_error"))
    made.number = int(said.get("code", 0)) % 100_000
    return made


def _csv(columns: tuple[str, ...], rows: Rows, *, head: bool = False) -> bytes:
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    if head:
        writer.writerow(columns)
    writer.writerows([_cell(row.get(name)) for name in columns] for row in rows)
    return out.getvalue().encode()


def _cell(value: Any) -> str:
    """Never a formula: what a spreadsheet would run is quoted as text. Signed numbers stay numbers."""
    text = "" if value is None else str(context.plain(value))
    is_number = text.lstrip("+-").replace(".", "", 1).isdigit()
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t") and not is_number else text


def _parquet_writer() -> Callable[[tuple[str, ...], Rows], bytes]:
    """Raises NoParquet. Decimals stay text: their scale differs by asset."""
    try:
        import pyarrow  # noqa: PLC0415 - an extra, and 100 ms of import
        import pyarrow.parquet  # noqa: PLC0415
    except ImportError as error:
        raise NoParquet(
            "this gateway has no pyarrow: install tiebreak[exports], or take CSV", field="format"
        ) from error

    def write(columns: tuple[str, ...], rows: Rows) -> bytes:
        texts = {
            name: pyarrow.array(
                [None if row.get(name) is None else str(context.plain(row[name])) for row in rows], pyarrow.string()
            )
            for name in columns
            if name != "index"
        }
        if "index" in columns:
            texts["index"] = pyarrow.array([row["index"] for row in rows], pyarrow.int64())
        out = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.table(texts), out)
        return out.getvalue()

    return write


ROUTES = [web.get("/v1/history/trades", trades), web.get("/v1/export", export)]
