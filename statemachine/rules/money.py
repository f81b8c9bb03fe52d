"""Rules for accounts, deposits, transfers and withdrawals."""

from statemachine.accounts import Account, Balance
from statemachine.codes import Code
from statemachine.commands import (
    Deposit,
    OpenAccount,
    PostWithdrawal,
    RequestWithdrawal,
    Transfer,
    VoidWithdrawal,
)
from statemachine.events import AccountOpened, Transferred, WithdrawalClosed, WithdrawalOpened
from statemachine.records import WithdrawalRecord
from statemachine.results import AnyResult, Done, Moved, WithdrawalPending
from statemachine.state import State, refused
from statemachine.types import WITHDRAWALS_OPEN_MAX, LedgerReason


def open_account(state: State, command: OpenAccount) -> AnyResult:
    if state.account(command.account) is not None:
        return refused(Code.account_exists)

    # ---- every refusal is above this line ----
    account = Account(command.account, command.keys_max)
    account.dirty = True
    state.accounts[command.account] = account
    state.dirty_accounts.append(account)
    state.events.append(AccountOpened(command.account))
    return Done()


def deposit(state: State, command: Deposit) -> AnyResult:
    account = state.trader(command.account)
    if isinstance(account, Code):
        return refused(account)
    asset = state.assets.get(command.asset)
    if asset is None:
        return refused(Code.asset_not_found)
    world = state.world.balances.get(command.asset)
    supply_units = command.amount_units - (world.available_units if world is not None else 0)
    if supply_units > asset.supply_units_max:
        return refused(Code.supply_exceeded, asset.supply_units_max, supply_units)

    # ---- every refusal is above this line ----
    source = state.balance(state.world, command.asset)
    target = state.balance(account, command.asset)
    return moved(state, source, target, command.amount_units, False, LedgerReason.deposit, 0)


def transfer(state: State, command: Transfer) -> AnyResult:
    if command.source == command.target:
        return refused(Code.accounts_must_differ)
    source = state.trader(command.source)
    if isinstance(source, Code):
        return refused(source)
    target = state.trader(command.target)
    if isinstance(target, Code):
        return refused(target)
    if command.asset not in state.assets:
        return refused(Code.asset_not_found)
    balance = source.balances.get(command.asset)
    available_units = 0 if balance is None else balance.available_units
    if balance is None or available_units < command.amount_units:
        return refused(Code.insufficient_funds, command.amount_units, available_units)

    # ---- every refusal is above this line ----
    to = state.balance(target, command.asset)
    return moved(state, balance, to, command.amount_units, False, LedgerReason.transfer, 0)


def moved(
    state: State,
    source: Balance,
    target: Balance,
    amount_units: int,
    from_hold: bool,
    reason: LedgerReason,
    reference: int,
) -> AnyResult:
    """Move, and say what both sides own now."""
    state.move(source, target, amount_units, from_hold, reason, reference)
    names = (source.account.account, target.account.account, source.asset)
    source_units = source.available_units + source.held_units
    target_units = target.available_units + target.held_units
    state.events.append(Transferred(*names, amount_units, reason, source_units, target_units))
    return Moved(*names, amount_units, source_units, target_units, state.now_us)


def request_withdrawal(state: State, command: RequestWithdrawal) -> AnyResult:
    account = state.trader(command.account)
    if isinstance(account, Code):
        return refused(account)
    if command.asset not in state.assets:
        return refused(Code.asset_not_found)
    if len(account.withdrawals) >= WITHDRAWALS_OPEN_MAX:
        return refused(Code.withdrawals_limit, WITHDRAWALS_OPEN_MAX, len(account.withdrawals))
    balance = account.balances.get(command.asset)
    available_units = 0 if balance is None else balance.available_units
    if balance is None or available_units < command.amount_units:
        return refused(Code.insufficient_funds, command.amount_units, available_units)

    # ---- every refusal is above this line ----
    withdrawal_id = state.next_withdrawal_id
    state.next_withdrawal_id = withdrawal_id + 1
    record = WithdrawalRecord(withdrawal_id, command.account, command.asset, command.amount_units, state.now_us)
    state.hold(balance, command.amount_units)
    state.withdrawals[withdrawal_id] = account.withdrawals[withdrawal_id] = record
    state.dirty_withdrawals[withdrawal_id] = record
    state.events.append(WithdrawalOpened(withdrawal_id, command.account, command.asset, command.amount_units))
    return WithdrawalPending(withdrawal_id, command.account, command.asset, command.amount_units, state.now_us)


def post_withdrawal(state: State, command: PostWithdrawal) -> AnyResult:
    record = state.withdrawals.get(command.withdrawal_id)
    if record is None:
        return refused(Code.withdrawal_not_found)

    # ---- every refusal is above this line ----
    balance = close_withdrawal(state, record, True)
    world = state.balance(state.world, record.asset)
    return moved(state, balance, world, record.amount_units, True, LedgerReason.withdrawal, record.withdrawal_id)


def void_withdrawal(state: State, command: VoidWithdrawal) -> AnyResult:
    record = state.withdrawals.get(command.withdrawal_id)
    if record is None:
        return refused(Code.withdrawal_not_found)

    # ---- every refusal is above this line ----
    balance = close_withdrawal(state, record, False)
    state.release(balance, record.amount_units)
    return Done()


def close_withdrawal(state: State, record: WithdrawalRecord, posted: bool) -> Balance:
    """Forget a pending withdrawal; returns the balance that holds its amount."""
    account = state.known_account(record.account)
    del state.withdrawals[record.withdrawal_id], account.withdrawals[record.withdrawal_id]
    state.dirty_withdrawals[record.withdrawal_id] = None
    state.events.append(
        WithdrawalClosed(record.withdrawal_id, record.account, record.asset, record.amount_units, posted)
    )
    return account.balances[record.asset]
