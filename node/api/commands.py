"""/v1/commands/{key}: what became of a command whose outcome its sender does not know."""

from aiohttp import web

from node.api import http
from node.auth import Principal, Role
from node.context import NODE, PRINCIPAL
from node.errors import CommandNotFound, InvalidField, NodeError
from node.outcomes import RuleRefused
from statemachine.codes import Code
from statemachine.results import Moved, Result, WithdrawalPending
from statemachine.types import SYSTEM_ACCOUNTS


@http.reading
async def show(request: web.Request) -> web.Response:
    """The answer as it was given, or 404: then the log had it not, as of X-Log-Index."""
    http.only(request, "account")
    node = request.app[NODE]
    key = request.match_info["key"]
    principal = request[PRINCIPAL]
    scope = _scope(principal, request.query.get("account", ""))
    outcome = node.answers.of_key(scope, key)
    if outcome is None or not all(map(principal.may_touch, _named(principal, outcome.result))):
        error = CommandNotFound(
            "no command of this key is in the log so far, or it is older than keys are kept; "
            "one that is still on its way may yet come: send it again with the same key to be sure",
            key=key[:64],
        )
        error.headers["X-Log-Index"] = str(node.machine.applied_index)
        raise error
    return http.read_answer(request, node.answers.render(scope, key, outcome))


def _named(principal: Principal, result: Result | NodeError) -> list[str]:
    """The accounts that an answer names. Custodians share a scope of keys, so it may be the answer to another one."""
    if principal.role is not Role.custodian:
        return []
    match result:
        case Moved(source, target):
            return [account for account in (source, target) if account not in SYSTEM_ACCOUNTS]
        case WithdrawalPending(account=account):
            return [account]
        case _:
            return []


def _scope(principal: Principal, account: str) -> str:
    """Keys are unique per account for traders, per role for the others."""
    if principal.role is Role.trader or (principal.role is Role.auditor and account):
        named = account or principal.only_account
        if not named:
            raise InvalidField("name an account: this token is good for several", field="account")
        if not principal.may_touch(named):
            raise RuleRefused(Code.account_not_found)
        return named
    return f"@{principal.role}"


ROUTES = [web.get("/v1/commands/{key}", show)]
