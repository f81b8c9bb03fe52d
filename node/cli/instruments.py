"""`tiebreak asset`, `instrument`, `reference`: what there is to trade, on which terms, and prices from outside."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from cluster import wire
from cluster.wire import InstrumentView
from node.cli.output import print_fields, print_json, print_table
from node.cli.session import CliError, KeyOption, Local, Session, connected

asset = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Add and list assets: what accounts hold, money and shares alike."
)
instrument = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Add, list and change instruments: one asset traded in another."
)
reference = typer.Typer(add_completion=False)

SymbolArgument = Annotated[str, typer.Argument(metavar="SYMBOL", help="For example AAPL.")]
MakerBps = Annotated[int, typer.Option(min=0, max=1_000, help="Fee of who rested, in hundredths of a percent.")]
TakerBps = Annotated[int, typer.Option(min=0, max=1_000, help="Fee of who came, in hundredths of a percent.")]


class Mode(StrEnum):
    trading = "trading"
    post_only = "post_only"
    cancel_only = "cancel_only"
    halted = "halted"


@connected(asset, "add")
async def add_asset(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="ASSET", help="1 to 12 of A-Z 0-9, for example USD.")],
    scale: Annotated[int, typer.Option(min=0, max=12, help="Decimals: 2 means that 0.01 is the smallest amount.")],
    supply_max: Annotated[str, typer.Option(metavar="AMOUNT", help="Most that may ever exist.")] = "",
    key: KeyOption = "",
) -> None:
    """Make an asset known.

    Example: tiebreak asset add USD --scale 2
    """
    async with session.client("operator") as client:
        outcome = await client.add_asset(name, scale=scale, supply_max=supply_max or None, key=key)
    session.finish(outcome, lambda answer: f"asset {name} added, {scale} decimals")


@connected(asset, "list")
async def list_assets(session: Session, local: Local = False) -> None:
    """List the assets.

    Example: tiebreak asset list
    """
    async with session.client("auditor") as client:
        assets = await client.assets(consistency="local" if local else "linearizable")
    if session.as_json:
        print_json({"assets": assets})
        return
    print_table(
        ("asset", "decimals", "most that may exist"),
        [(a.asset, str(a.scale), a.supply_max) for a in assets],
        right=("decimals", "most that may exist"),
        empty="no assets yet; `tiebreak asset add USD --scale 2` adds one",
    )


@connected(instrument, "add")
async def add_instrument(
    session: Session,
    symbol: SymbolArgument,
    base: Annotated[str, typer.Option(metavar="ASSET", help="What is traded.")],
    quote: Annotated[str, typer.Option(metavar="ASSET", help="What it is paid in.")],
    tick: Annotated[str, typer.Option(metavar="DECIMAL", help="Step of prices.")],
    lot: Annotated[str, typer.Option(metavar="DECIMAL", help="Step of quantities.")],
    maker_bps: MakerBps = 0,
    taker_bps: TakerBps = 0,
    qty_min: Annotated[str, typer.Option(metavar="DECIMAL")] = "",
    qty_max: Annotated[str, typer.Option(metavar="DECIMAL")] = "",
    band_bps: Annotated[int | None, typer.Option(min=0, max=10_000, help="Furthest from the reference price.")] = None,
    collar_bps: Annotated[
        int | None, typer.Option(min=0, max=10_000, help="How far a market order without a price may go.")
    ] = None,
    key: KeyOption = "",
) -> None:
    """List an instrument. One tick times one lot must be exact in the quote asset's smallest unit.

    Example: tiebreak instrument add AAPL --base AAPL --quote USD --tick 0.01 --lot 1 --taker-bps 5
    """
    limits = wire.LimitsBody(qty_min=qty_min or None, qty_max=qty_max or None, band_bps=band_bps, collar_bps=collar_bps)
    async with session.client("operator") as client:
        outcome = await client.add_instrument(
            symbol,
            base=base,
            quote=quote,
            tick_size=tick,
            lot_size=lot,
            maker_bps=maker_bps,
            taker_bps=taker_bps,
            limits=limits,
            key=key,
        )
    session.finish(outcome, lambda answer: f"instrument {symbol} added: {base} for {quote}, tick {tick}, lot {lot}")


@connected(instrument, "list")
async def list_instruments(session: Session, local: Local = False) -> None:
    """List the instruments.

    Example: tiebreak instrument list
    """
    async with session.client("auditor") as client:
        views = await client.instruments(consistency="local" if local else "linearizable")
    if session.as_json:
        print_json({"instruments": views})
        return
    print_table(
        ("symbol", "base", "quote", "tick", "lot", "maker bps", "taker bps", "mode", "open", "reference"),
        [_row(view) for view in views],
        right=("tick", "lot", "maker bps", "taker bps", "reference"),
        empty="no instruments yet; `tiebreak instrument add --help` shows how to add one",
    )


def _row(view: InstrumentView) -> tuple[str, ...]:
    return (
        view.symbol,
        view.base,
        view.quote,
        view.tick_size,
        view.lot_size,
        str(view.maker_bps),
        str(view.taker_bps),
        view.mode,
        "yes" if view.open else "no",
        view.reference_price or "",
    )


@connected(instrument, "show")
async def show_instrument(session: Session, symbol: SymbolArgument, local: Local = False) -> None:
    """Show one instrument, with its limits and calendar.

    Example: tiebreak instrument show AAPL
    """
    async with session.client("auditor") as client:
        view = await client.instrument(symbol, consistency="local" if local else "linearizable")
    if session.as_json:
        print_json(view)
        return
    plain: dict[str, Any] = msgspec.to_builtins(view)
    flat = {name: value for name, value in plain.items() if name not in ("limits", "calendar")}
    flat |= plain["limits"]
    pairs = [(name, "yes" if value is True else "no" if value is False else value) for name, value in flat.items()]
    calendar = plain["calendar"]
    pairs.append(("calendar", json.dumps(calendar) if calendar else "always open"))
    print_fields((name, None if value is None else str(value)) for name, value in pairs)


@connected(instrument, "mode")
async def set_mode(
    session: Session,
    symbol: Annotated[str, typer.Argument(metavar="SYMBOL", help="An instrument, or `all`.")],
    mode: Annotated[Mode, typer.Argument(help="What it accepts from now on.", show_default=False)],
    key: KeyOption = "",
) -> None:
    """Change what an instrument accepts. Cancels pass in every mode but halted.

    Example: tiebreak instrument mode AAPL halted
    """
    async with session.client("operator") as client:
        outcome = await client.change_instrument("" if symbol == "all" else symbol, mode=mode.value, key=key)
    session.finish(outcome, lambda answer: f"{'all instruments' if symbol == 'all' else symbol}: {mode.value}")


@connected(instrument, "fees")
async def set_fees(
    session: Session,
    symbol: SymbolArgument,
    maker_bps: MakerBps,
    taker_bps: TakerBps,
    key: KeyOption = "",
) -> None:
    """Change the fees of orders that enter from now on.

    Example: tiebreak instrument fees AAPL --maker-bps 1 --taker-bps 5
    """
    async with session.client("operator") as client:
        outcome = await client.change_instrument(symbol, maker_bps=maker_bps, taker_bps=taker_bps, key=key)
    session.finish(outcome, lambda answer: f"{symbol}: maker {maker_bps} bps, taker {taker_bps} bps")


@connected(instrument, "limits")
async def set_limits(
    session: Session,
    symbol: SymbolArgument,
    qty_min: Annotated[str, typer.Option(metavar="DECIMAL", help="Smallest quantity of an order.")] = "",
    qty_max: Annotated[str, typer.Option(metavar="DECIMAL", help="Largest.")] = "",
    notional_min: Annotated[str, typer.Option(metavar="DECIMAL", help="Smallest price times quantity.")] = "",
    notional_max: Annotated[str, typer.Option(metavar="DECIMAL", help="Largest.")] = "",
    open_orders_max: Annotated[int | None, typer.Option(min=1, help="Open orders of one account.")] = None,
    band_bps: Annotated[
        int | None, typer.Option(min=0, max=10_000, help="Furthest from the reference price; 0: no band.")
    ] = None,
    collar_bps: Annotated[
        int | None, typer.Option(min=0, max=10_000, help="How far a market order without a price may go.")
    ] = None,
    reference_age_ms_max: Annotated[int | None, typer.Option(min=0, help="Older, a reference price is stale.")] = None,
    key: KeyOption = "",
) -> None:
    """Change limits; what is left out keeps its value.

    Example: tiebreak instrument limits AAPL --qty-max 10000 --band-bps 1000
    """
    body = wire.LimitsBody(
        qty_min=qty_min or None,
        qty_max=qty_max or None,
        notional_min=notional_min or None,
        notional_max=notional_max or None,
        open_orders_max=open_orders_max,
        band_bps=band_bps,
        collar_bps=collar_bps,
        reference_age_ms_max=reference_age_ms_max,
    )
    if body == wire.LimitsBody():
        raise CliError("nothing to change; `tiebreak instrument limits --help` lists what can be")
    async with session.client("operator") as client:
        outcome = await client.change_instrument(symbol, limits=body, key=key)
    session.finish(outcome, lambda answer: f"limits of {symbol} changed")


@connected(instrument, "calendar")
async def set_calendar(
    session: Session,
    symbol: SymbolArgument,
    file: Annotated[
        Path | None, typer.Option("--file", metavar="FILE", help="The calendar as JSON; `-` reads stdin.")
    ] = None,
    weekdays: Annotated[
        str, typer.Option(metavar="HH:MM-HH:MM", help="Monday to Friday, the same hours each day.")
    ] = "",
    utc_offset_minutes: Annotated[int, typer.Option(min=-840, max=840, help="Local time minus UTC.")] = 0,
    holiday: Annotated[
        list[str] | None, typer.Option(metavar="YYYY-MM-DD", help="A closed day; may be repeated.")
    ] = None,
    always: Annotated[bool, typer.Option("--always", help="Open always; a day order then ends at midnight.")] = False,
    key: KeyOption = "",
) -> None:
    """Change when an instrument trades.

    Example: tiebreak instrument calendar AAPL --weekdays 09:30-16:00 --utc-offset-minutes -300

    A file says more: {"weekly": {"mon": {"open": "09:30", "close": "16:00"}}, "utc_offset_minutes": -300,
    "holidays": ["2026-12-25"], "special": {"2026-12-24": {"open": "09:30", "close": "13:00"}}}
    """
    given = [file is not None, bool(weekdays), always]
    if sum(given) != 1:
        raise CliError("say exactly one of --weekdays, --file, --always")
    if file is not None:
        body = _calendar_file(file)
    elif weekdays:
        opens, _, closes = weekdays.partition("-")
        hours = {"open": opens.strip(), "close": closes.strip()}
        body = _calendar(
            {
                "weekly": dict.fromkeys(("mon", "tue", "wed", "thu", "fri"), hours),
                "utc_offset_minutes": utc_offset_minutes,
                "holidays": holiday or [],
            }
        )
    else:
        body = _calendar({"utc_offset_minutes": utc_offset_minutes})
    async with session.client("operator") as client:
        outcome = await client.change_instrument(symbol, calendar=body, key=key)
    session.finish(outcome, lambda answer: f"calendar of {symbol} changed")


def _calendar_file(file: Path) -> wire.CalendarBody:
    try:
        text = typer.get_text_stream("stdin").read() if str(file) == "-" else file.read_text("utf-8")
        return _calendar(json.loads(text))
    except (OSError, ValueError) as error:
        raise CliError(f"{file}: {error}") from error


def _calendar(body: object) -> wire.CalendarBody:
    try:
        return msgspec.convert(body, wire.CalendarBody)
    except msgspec.ValidationError as error:
        raise CliError(f"not a calendar: {error}; hours are written 09:30-16:00") from error


@connected(reference, "reference")
async def set_reference(
    session: Session,
    symbol: SymbolArgument,
    price: Annotated[str, typer.Argument(metavar="PRICE", help="The price, on the instrument's tick.")],
    observed_at: Annotated[
        str, typer.Option(metavar="TIME", help="When it was seen, as 2026-01-31T09:30:00Z; now when left out.")
    ] = "",
    key: KeyOption = "",
) -> None:
    """Tell a price seen outside. Market orders, collars and bands use it while it is fresh (5 s by default).

    Example: tiebreak reference AAPL 187.20
    """
    async with session.client("feed") as client:
        outcome = await client.set_reference(symbol, price, observed_at=observed_at, key=key)
    session.finish(outcome, lambda answer: f"reference price of {symbol} is {price}")
