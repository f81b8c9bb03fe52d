"""/v1/accounts, /v1/transfers, /v1/ledger: who owns what, and how it came."""

from aiohttp import web

from cluster import wire
from node.api import http
from node.bodies import Reader
from node.context import NODE, PRINCIPAL, Node
from node.errors import InvalidField
from node.outcomes import RuleRefused, answer
from node.views import account_view, ledger_view, withdrawal_view
from statemachine.codes import Code
from statemachine.records import AccountRecord

_read_open: Reader[wire.OpenAccount] = Reader(wire.OpenAccount)
_read_transfer: Reader[wire.TransferFunds] = Reader(wire.TransferFunds)
_read_close: Reader[wire.CloseWithdrawal] = Reader(wire.CloseWithdrawal)

READERS = ("trader", "custodian", "auditor")


async def open_account(request: web.Request) -> web.Response:
    prepared, outcome = await http.submit(request, await http.read_body(request, _read_open))
    return http.written(request, outcome, answer(prepared, outcome))


@http.reading
async def show_account(request: web.Request) -> web.Response:
    http.only(request)
    principal = request[PRINCIPAL]
    http.allow(principal, *READERS)
    account = request.match_info["account"]
    if not principal.may_touch(account):
        raise RuleRefused(Code.account_not_found)
    node = request.app[NODE]
    return http.read_answer(request, _view(node, _record(node, account)))


@http.reading
async def list_accounts(request: web.Request) -> web.Response:
    """The accounts that the token names. Ids of others are told to nobody."""
    http.only(request)
    principal = request[PRINCIPAL]
    http.allow(principal, *READERS)
    node = request.app[NODE]
    records = [node.machine.account(account) for account in sorted(principal.accounts)]
    return http.read_answer(request, http.Page([_view(node, record) for record in records if record is not None]))


async def transfer(request: web.Request) -> web.Response:
    prepared, outcome = await http.submit(request, await http.read_body(request, _read_transfer))
    return http.written(request, outcome, answer(prepared, outcome))


async def close_withdrawal(request: web.Request) -> web.Response:
    body = await http.read_body(request, _read_close)
    withdrawal_id = str(http.identifier(request, "withdrawal_id"))
    if body.withdrawal_id and body.withdrawal_id != withdrawal_id:
        raise InvalidField("withdrawal_id in the body differs from the path", field="withdrawal_id")
    command = wire.CloseWithdrawal(
        key=body.key, sent_at=body.sent_at, account=body.account, withdrawal_id=withdrawal_id, post=body.post
    )
    prepared, outcome = await http.submit(request, command)
    return http.written(request, outcome, answer(prepared, outcome))


@http.reading
async def pending(request: web.Request) -> web.Response:
    """The account's pending withdrawals, the oldest first."""
    http.only(request, "account", "limit", "page_token")
    account = http.account_of(request, *READERS)
    node = request.app[NODE]
    limit = http.page_limit(request, node)
    start = http.page_token(request) or 0
    _record(node, account)
    records = [one for one in node.machine.withdrawals(account) if one.withdrawal_id >= start]
    views = [withdrawal_view(one, node.catalogue) for one in records[:limit]]
    following = str(records[limit].withdrawal_id) if len(records) > limit else None
    return http.read_answer(request, http.Page(views, following))


@http.reading
async def ledger(request: web.Request) -> web.Response:
    """The account's rows, the newest first."""
    http.only(request, "account", "limit", "page_token")
    account = http.account_of(request, *READERS)
    node = request.app[NODE]
    limit = http.page_limit(request, node)
    start = http.page_token(request)
    record = _record(node, account)
    page = node.history.ledger(record.last_ledger_row if start is None else start, limit=limit)
    if any(row.account != account for row in page.rows):
        # A token is an id that can be guessed: it must not open another's ledger.
        raise InvalidField("page_token is none that this list gave", field="page_token")
    views = [ledger_view(row, node.catalogue) for row in page.rows]
    return http.read_answer(request, http.Page(views, str(page.next_id) if page.next_id else None, page.past_gone))


def _record(node: Node, account: str) -> AccountRecord:
    record = node.machine.account(account)
    if record is None:
        raise RuleRefused(Code.account_not_found)
    return record


def _view(node: Node, record: AccountRecord) -> wire.AccountView:
    return account_view(record, node.catalogue, open_orders=len(node.machine.open_orders(record.account)))


ROUTES = [
    web.post("/v1/accounts", open_account),
    web.get("/v1/accounts", list_accounts),
    web.get("/v1/accounts/{account}", show_account),
    web.post("/v1/transfers", transfer),
    web.get("/v1/transfers", pending),
    web.post("/v1/transfers/{withdrawal_id}", close_withdrawal),
    web.get("/v1/ledger", ledger),
]
