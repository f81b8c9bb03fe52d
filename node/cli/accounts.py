"""`tiebreak account`, `deposit`, `withdraw`, `transfer`, `ledger`: whose money it is and how it moves."""

from typing import Annotated

import typer

from node.cli.output import out, print_json, print_table, say, short_time
from node.cli.session import KeyOption, Limit, Local, PageToken, Session, connected

account = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Open and show accounts. An account is an opaque id: no names in it.",
)
deposit = typer.Typer(add_completion=False)
withdraw = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="""Take money out in two steps: `request` holds the amount; once the outside was paid, `post` it; if it
could not be paid, `void` it and the money is available again.""",
)
transfer = typer.Typer(add_completion=False)
ledger = typer.Typer(add_completion=False)

AccountArgument = Annotated[str, typer.Argument(metavar="ACCOUNT", help="The account's id.")]
AssetArgument = Annotated[str, typer.Argument(metavar="ASSET", help="For example USD.")]
AmountArgument = Annotated[str, typer.Argument(metavar="AMOUNT", help="A decimal, exact in the asset's scale.")]


@connected(account, "open")
async def open_account(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="ACCOUNT", help="3 to 64 of a-z 0-9 _ -; drawn when left out.")] = "",
    keys_max: Annotated[int, typer.Option(min=1, help="Most idempotency keys it may hold at once.")] = 10_000_000,
    key: KeyOption = "",
) -> None:
    """Open an account.

    Example: tiebreak account open alice
    """
    async with session.client("custodian") as client:
        outcome = await client.open_account(name, keys_max=keys_max, key=key)
    session.finish(outcome, lambda answer: f"account {answer.account or name} is open")


@connected(account, "show")
async def show_account(session: Session, name: AccountArgument, local: Local = False) -> None:
    """Show the balances of an account: what is available, and what open orders and withdrawals hold.

    Example: tiebreak account show alice
    """
    async with session.client("auditor") as client:
        view = await client.account(name, consistency="local" if local else "linearizable")
    if session.as_json:
        print_json(view)
        return
    out.print(f"[bold]{view.id}[/]  {view.status.lower()}, open orders: {view.open_orders}")
    print_table(
        ("asset", "available", "held"),
        [(b.asset, b.available, b.held) for b in view.balances],
        right=("available", "held"),
        empty="no balances yet; `tiebreak deposit` brings some in",
    )


@connected(deposit, "deposit")
async def do_deposit(
    session: Session, name: AccountArgument, asset: AssetArgument, amount: AmountArgument, key: KeyOption = ""
) -> None:
    """Bring money or shares into an account from the outside world.

    Example: tiebreak deposit alice USD 25000.00
    """
    async with session.client("custodian") as client:
        outcome = await client.deposit(name, asset, amount, key=key)
    session.finish(outcome, lambda answer: f"deposited {amount} {asset} into {name}")


@connected(withdraw, "request")
async def request_withdrawal(
    session: Session, name: AccountArgument, asset: AssetArgument, amount: AmountArgument, key: KeyOption = ""
) -> None:
    """Hold an amount until the outside has been paid; prints the withdrawal's id.

    Example: tiebreak withdraw request alice USD 100
    """
    async with session.client("custodian") as client:
        outcome = await client.request_withdrawal(name, asset, amount, key=key)
    session.finish(
        outcome,
        lambda answer: (
            f"withdrawal {answer.id} holds {amount} {asset} of {name}; end it with `tiebreak withdraw post "
            f"{answer.id}` or `void {answer.id}`"
        ),
    )


WithdrawalArgument = Annotated[str, typer.Argument(metavar="WITHDRAWAL", help="The id that `request` printed.")]


@connected(withdraw, "post")
async def post_withdrawal(session: Session, withdrawal: WithdrawalArgument, key: KeyOption = "") -> None:
    """The outside was paid: the held amount leaves.

    Example: tiebreak withdraw post 1
    """
    async with session.client("custodian") as client:
        outcome = await client.close_withdrawal(withdrawal, post=True, key=key)
    session.finish(outcome, lambda answer: f"withdrawal {withdrawal} is posted")


@connected(withdraw, "void")
async def void_withdrawal(session: Session, withdrawal: WithdrawalArgument, key: KeyOption = "") -> None:
    """The outside was not paid: the held amount is available again.

    Example: tiebreak withdraw void 1
    """
    async with session.client("custodian") as client:
        outcome = await client.close_withdrawal(withdrawal, post=False, key=key)
    session.finish(outcome, lambda answer: f"withdrawal {withdrawal} is void")


@connected(withdraw, "list")
async def list_withdrawals(
    session: Session, name: AccountArgument, limit: Limit = 50, page_token: PageToken = "", local: Local = False
) -> None:
    """List an account's withdrawals that are neither posted nor void yet, oldest first.

    Example: tiebreak withdraw list alice
    """
    async with session.client("auditor") as client:
        page = await client.withdrawals(
            name, limit=limit, page_token=page_token, consistency="local" if local else "linearizable"
        )
    if session.as_json:
        print_json({"withdrawals": page.items, "next_page_token": page.next_page_token, "index": page.index})
        return
    print_table(
        ("id", "asset", "amount", "status", "requested"),
        [(one.id, one.asset, one.amount, one.status, short_time(one.at)) for one in page.items],
        right=("id", "amount"),
        empty="no pending withdrawals",
    )
    if page.next_page_token:
        say(f"[dim]more: --page-token {page.next_page_token}[/]")


@connected(transfer, "transfer")
async def do_transfer(
    session: Session,
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="The account that gives.")],
    target: Annotated[str, typer.Argument(metavar="TARGET", help="The account that gets.")],
    asset: AssetArgument,
    amount: AmountArgument,
    key: KeyOption = "",
) -> None:
    """Move an available amount from one account to another.

    Example: tiebreak transfer alice bob USD 12.50
    """
    async with session.client("custodian") as client:
        outcome = await client.transfer(source, target, asset, amount, key=key)
    session.finish(outcome, lambda answer: f"moved {amount} {asset} from {source} to {target}")


@connected(ledger, "ledger")
async def show_ledger(
    session: Session,
    name: AccountArgument,
    asset: Annotated[str, typer.Option(metavar="ASSET", help="Only this asset.")] = "",
    limit: Limit = 50,
    page_token: PageToken = "",
    local: Local = False,
) -> None:
    """Show every movement of an account's money, with the balance after it and where it stands in the log.

    Example: tiebreak ledger alice --asset USD
    """
    async with session.client("auditor") as client:
        page = await client.ledger(
            name,
            limit=limit,
            page_token=page_token,
            consistency="local" if local else "linearizable",
        )
    rows = [row for row in page.items if asset in ("", row.asset)]
    if session.as_json:
        print_json({"ledger": rows, "next_page_token": page.next_page_token, "index": page.index})
        return
    print_table(
        ("row", "at", "asset", "amount", "balance", "reason", "of", "index"),
        [
            (row.row, short_time(row.at), row.asset, row.amount, row.balance, row.reason, row.reference, str(row.index))
            for row in rows
        ],
        right=("row", "amount", "balance", "of", "index"),
        empty="nothing has moved yet",
    )
    if page.next_page_token:
        say(f"[dim]more: --page-token {page.next_page_token}[/]")
