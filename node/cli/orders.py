"""`tiebreak order`, `book`, `trades`, `commands`: orders, what they met, and what became of a command."""

from enum import StrEnum
from typing import Annotated, Any

import typer

from cluster.client import Consistency, ReadRefused
from cluster.wire import Answer, BookLevel, BookView, OrderView
from node.cli.main import EXIT_REFUSED
from node.cli.output import HINTS, complain, print_fields, print_json, print_table, say, short_time
from node.cli.session import (
    Account,
    KeyOption,
    Limit,
    Local,
    PageToken,
    Session,
    connected,
    need_account,
)

order = typer.Typer(add_completion=False, no_args_is_help=True, help="Place, replace, cancel, show and list orders.")
book = typer.Typer(add_completion=False)
trades = typer.Typer(add_completion=False)
commands = typer.Typer(add_completion=False, no_args_is_help=True, help="What became of a command, by its key.")

OrderArgument = Annotated[str, typer.Argument(metavar="ORDER", help="The order's id.")]
ClientId = Annotated[
    str,
    typer.Option("--client-id", metavar="KEY", help="Instead of ORDER: the key of its placing, or last replacing."),
]
SymbolArgument = Annotated[str, typer.Argument(metavar="SYMBOL", help="For example AAPL.")]


class Side(StrEnum):
    buy = "buy"
    sell = "sell"


class TimeInForce(StrEnum):
    gtc = "gtc"
    ioc = "ioc"
    fok = "fok"
    day = "day"
    gtd = "gtd"


class SelfTrade(StrEnum):
    cancel_newest = "cancel_newest"
    cancel_oldest = "cancel_oldest"
    cancel_both = "cancel_both"
    decrement = "decrement"


class ListStatus(StrEnum):
    open = "open"
    closed = "closed"
    all = "all"


@connected(order, "place")
async def place(
    session: Session,
    side: Annotated[Side, typer.Argument(help="Buy or sell.", show_default=False)],
    symbol: SymbolArgument,
    qty: Annotated[str, typer.Argument(metavar="QTY", help="How much; left out with --budget.")] = "",
    price: Annotated[
        str, typer.Option("--price", "-p", help="The limit; with --market the worst price it may trade at.")
    ] = "",
    market: Annotated[bool, typer.Option("--market", help="A market order.")] = False,
    budget: Annotated[str, typer.Option(help="Market buy for this much money, fees included, instead of QTY.")] = "",
    tif: Annotated[
        TimeInForce | None,
        typer.Option(help="gtc stays, ioc and fok do not, day and gtd expire. Default: gtc, for --market ioc."),
    ] = None,
    expires_at: Annotated[str, typer.Option(metavar="TIME", help="For gtd, as 2026-01-31T16:00:00Z.")] = "",
    post_only: Annotated[bool, typer.Option("--post-only", help="Refuse rather than trade on entry.")] = False,
    self_trade: Annotated[
        SelfTrade, typer.Option(help="What happens when it meets an order of its own account.")
    ] = SelfTrade.cancel_newest,
    guard: Annotated[str, typer.Option("--session", metavar="SESSION", help="Cancel-on-disconnect session.")] = "",
    account: Account = "",
    key: KeyOption = "",
) -> None:
    """Place an order; it is durable on a majority of members when this returns.

    Example: tiebreak order place buy AAPL 10 --price 187.20 --account alice

    Example: tiebreak order place buy AAPL --market --budget 1000 --account alice
    """
    if not market and not price:
        complain("a limit order needs a price", "say --price PRICE, or --market")
        raise typer.Exit(2)
    async with session.client("trader", need_account(account)) as client:
        outcome = await client.place_order(
            account=account,
            symbol=symbol,
            side=side.value,
            type="market" if market else "limit",
            qty=qty or None,
            notional=budget or None,
            limit_price=price or None,
            time_in_force=tif.value if tif is not None else None,
            expires_at=expires_at,
            post_only=post_only,
            self_trade=self_trade.value,
            session=guard,
            key=key,
        )
    session.finish(outcome, _placed)


def _placed(answer: Answer) -> str:
    text = f"order {answer.id} {answer.status}"
    if answer.reason and answer.reason != answer.status:
        text += f" ({answer.reason})"
    if answer.filled_qty not in ("", "0"):
        text += f", filled {answer.filled_qty} at {answer.filled_avg_price}, fee {answer.fee or '0'}"
    if answer.leaves_qty not in ("", "0"):
        text += f", {answer.leaves_qty} open"
    return text


@connected(order, "replace")
async def replace(
    session: Session,
    order_id: OrderArgument = "",
    qty: Annotated[str, typer.Option(help="New total quantity, what has filled included.")] = "",
    price: Annotated[str, typer.Option("--price", "-p", help="New limit.")] = "",
    client_id: ClientId = "",
    account: Account = "",
    key: KeyOption = "",
) -> None:
    """Change an open limit order; it gets a new id.

    A smaller quantity at the same price keeps the place in the queue; anything else loses it.

    Example: tiebreak order replace 1 --qty 5 --account alice

    Example: tiebreak order replace --client-id my-order-1 --price 187.10 --account alice
    """
    _need_one_name(order_id, client_id)
    async with session.client("trader", need_account(account)) as client:
        outcome = await client.replace_order(
            order_id, client_order_id=client_id, qty=qty or None, limit_price=price or None, account=account, key=key
        )
    session.finish(
        outcome,
        lambda answer: (
            f"{_placed(answer)}, replaces {answer.replaces}"
            + (", place in the queue kept" if answer.kept_priority else "")
        ),
    )


def _need_one_name(order_id: str, client_id: str) -> None:
    if bool(order_id) == bool(client_id):
        raise typer.BadParameter("say which order: ORDER, or --client-id KEY" + (", not both" if order_id else ""))


@connected(order, "cancel")
async def cancel(
    session: Session,
    order_id: OrderArgument = "",
    client_id: ClientId = "",
    account: Account = "",
    key: KeyOption = "",
) -> None:
    """Cancel an open order.

    Example: tiebreak order cancel 1 --account alice

    Example: tiebreak order cancel --client-id my-order-1 --account alice
    """
    _need_one_name(order_id, client_id)
    async with session.client("trader", need_account(account)) as client:
        outcome = await client.cancel_order(order_id, client_order_id=client_id, account=account, key=key)
    session.finish(outcome, lambda answer: f"order {answer.id} canceled, {answer.leaves_qty or '0'} was open")


@connected(order, "cancel-all")
async def cancel_all(
    session: Session,
    symbol: Annotated[str, typer.Option(metavar="SYMBOL", help="Only in this instrument.")] = "",
    account: Account = "",
    key: KeyOption = "",
) -> None:
    """Cancel all open orders of an account; with --symbol and no account, all of an instrument (as an operator).

    Example: tiebreak order cancel-all --account alice --symbol AAPL
    """
    if not account and not symbol:
        raise typer.BadParameter("say --account, --symbol, or both")
    async with session.client("trader" if account else "operator", account) as client:
        outcome = await client.cancel_orders(account=account, symbol=symbol, key=key)
    session.finish(
        outcome,
        lambda answer: (
            f"canceled {answer.count} orders"
            + (f"; {answer.remaining} more follow in chunks" if answer.remaining else "")
        ),
    )


@connected(order, "show")
async def show(
    session: Session,
    order_id: OrderArgument = "",
    client_id: ClientId = "",
    account: Account = "",
    local: Local = False,
) -> None:
    """Show one order, open or closed.

    Example: tiebreak order show 1

    Example: tiebreak order show --client-id my-order-1 --account alice
    """
    _need_one_name(order_id, client_id)
    consistency: Consistency = "local" if local else "linearizable"
    async with session.client("auditor") as client:
        if client_id:
            view = await client.order_of_key(client_id, account=need_account(account), consistency=consistency)
        else:
            view = await client.order(order_id, consistency=consistency)
    if session.as_json:
        print_json(view)
        return
    print_fields((name, _text(getattr(view, name))) for name in view.__struct_fields__ if name != "order_type")


def _text(value: Any) -> str | None:
    if isinstance(value, bool):
        return "yes" if value else None
    return str(value) if isinstance(value, str) and value else None


@connected(order, "list")
async def list_orders(
    session: Session,
    status: Annotated[ListStatus, typer.Option(help="Which ones.")] = ListStatus.open,
    symbol: Annotated[str, typer.Option(metavar="SYMBOL", help="Only in this instrument.")] = "",
    account: Account = "",
    limit: Limit = 50,
    page_token: PageToken = "",
    local: Local = False,
) -> None:
    """List the orders of an account, newest first.

    Example: tiebreak order list --account alice --status all
    """
    async with session.client("auditor") as client:
        page = await client.orders(
            account=need_account(account),
            status=status.value,
            symbol=symbol,
            limit=limit,
            page_token=page_token,
            consistency="local" if local else "linearizable",
        )
    if session.as_json:
        print_json({"orders": page.items, "next_page_token": page.next_page_token, "index": page.index})
        return
    print_table(
        ORDER_COLUMNS,
        [_row(view) for view in page.items],
        right=("id", "price", "qty", "filled"),
        empty=f"no {status.value if status is not ListStatus.all else ''} orders".replace("  ", " "),
    )
    if page.next_page_token:
        say(f"[dim]more: --page-token {page.next_page_token}[/]")


ORDER_COLUMNS = ("id", "symbol", "side", "type", "price", "qty", "filled", "status", "reason", "updated")
"""What fits into 80 characters; `order show` has the rest."""


def _row(view: OrderView) -> tuple[str, ...]:
    return (
        view.id,
        view.symbol,
        view.side,
        "market" if view.type == "market" else view.time_in_force,
        view.limit_price or "",
        view.qty or (f"for {view.notional}" if view.notional else ""),
        view.filled_qty,
        view.status,
        view.reason.replace("_", " ") if view.reason != view.status else "",
        short_time(view.updated_at)[11:],
    )


@connected(book, "book")
async def show_book(
    session: Session,
    symbol: SymbolArgument,
    depth: Annotated[int, typer.Option(min=1, max=1_000, help="Levels of each side.")] = 10,
    local: Local = False,
) -> None:
    """Show the order book of an instrument: the best prices of both sides, with quantity and number of orders.

    Example: tiebreak book AAPL --depth 5
    """
    async with session.client("auditor") as client:
        view = await client.book(symbol, depth=depth, consistency="local" if local else "linearizable")
    if session.as_json:
        print_json(view)
        return
    _print_book(view)


def _print_book(view: BookView) -> None:
    rows = [_level("ask", level) for level in reversed(view.asks)] + [_level("bid", level) for level in view.bids]
    print_table(
        ("side", "price", "qty", "orders"),
        rows,
        right=("price", "qty", "orders"),
        title=f"{view.symbol} at index {view.index}",
        empty=f"the book of {view.symbol} is empty",
    )


def _level(side: str, level: BookLevel) -> tuple[str, ...]:
    return side, level.price, level.qty, str(level.orders)


@connected(trades, "trades")
async def show_trades(
    session: Session,
    symbol: Annotated[str, typer.Argument(metavar="SYMBOL", help="Only this instrument.")] = "",
    account: Account = "",
    limit: Limit = 50,
    page_token: PageToken = "",
    local: Local = False,
) -> None:
    """Show trades of an instrument, or with --account an account's own, with its side and fee.

    Example: tiebreak trades AAPL

    Example: tiebreak trades --account alice
    """
    if not symbol and not account:
        raise typer.BadParameter("say SYMBOL, --account, or both")
    async with session.client("auditor") as client:
        page = await client.trades(
            symbol=symbol,
            account=account,
            limit=limit,
            page_token=page_token,
            consistency="local" if local else "linearizable",
        )
    if session.as_json:
        print_json({"trades": page.items, "next_page_token": page.next_page_token, "index": page.index})
        return
    own = bool(account)
    print_table(
        ("at", "id", "symbol", "price", "qty") + (("side", "as", "order", "fee") if own else ("taker",)),
        [
            (short_time(t.at), t.id, t.symbol, t.price, t.qty)
            + ((str(t.side), str(t.liquidity), str(t.order_id), str(t.fee)) if own else (t.taker_side,))
            for t in page.items
        ],
        right=("id", "price", "qty", "order", "fee"),
        empty="no trades",
    )
    if page.next_page_token:
        say(f"[dim]more: --page-token {page.next_page_token}[/]")


@commands.callback()
def _commands() -> None:
    pass


class Scope(StrEnum):
    trader = "trader"
    custodian = "custodian"
    operator = "operator"
    feed = "feed"


@connected(commands, "show")
async def show_command(
    session: Session,
    key: Annotated[str, typer.Argument(metavar="KEY", help="The idempotency key that the command was sent with.")],
    role: Annotated[
        Scope, typer.Option(help="Who sent it; keys of accounts and of each role are apart.")
    ] = Scope.trader,
    account: Account = "",
) -> None:
    """Say what became of a command. Ends every "outcome unknown".

    Example: tiebreak commands show 7d0c9c1e --account alice

    Example: tiebreak commands show my-deposit-1 --role custodian
    """
    if role is Scope.trader:
        need_account(account)
    async with session.client(role.value, account) as client:
        try:
            outcome = await client.command(key, account=account)
        except ReadRefused as refused:
            if session.as_json:
                print_json({"outcome": "not_found", "key": key, "error": refused.error})
            complain(
                f"{refused.error}: {refused.message}",
                HINTS.get(refused.error, "not in the log so far; a command still under way may yet come"),
            )
            raise typer.Exit(EXIT_REFUSED) from None
    session.finish(
        outcome,
        lambda answer: _placed(answer) if answer.status else f"done at index {answer.index}",
        looked_up=True,
    )
