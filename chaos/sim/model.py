"""An independent ledger: what the commands of a run must have answered. It shares no rule with the state machine."""

from msgspec import Struct

from statemachine.codec import decode_batch, decode_command
from statemachine.commands import AddAsset, Deposit, OpenAccount, Transfer

OK = "ok"


class Answer(Struct, frozen=True):
    """index: where it was executed. words: 'ok' or why not, with what the accounts then owned."""

    index: int
    words: tuple[object, ...]


class Model:
    """Executes the committed payloads once more. `answers`: the first of each key; `repeats`: how often it came."""

    def __init__(self) -> None:
        self.owned: dict[tuple[str, str], int] = {}
        self.accounts: set[str] = set()
        self.assets: set[str] = set()
        self.answers: dict[tuple[str, str], Answer] = {}
        self.repeats = 0

    def apply(self, index: int, payload: bytes) -> None:
        for envelope in decode_batch(payload).commands:
            command = decode_command(envelope.body)
            if not envelope.key:
                continue  # a time step
            key = (envelope.scope, envelope.key)
            if key in self.answers:
                self.repeats += 1
                continue
            self.answers[key] = Answer(index, self._execute(command))

    def _execute(self, command: object) -> tuple[object, ...]:
        owned = self.owned
        match command:
            case OpenAccount(account):
                if account in self.accounts:
                    return ("account_exists",)
                self.accounts.add(account)
                return (OK,)
            case Deposit(account, asset, amount):
                if account not in self.accounts:
                    return ("account_not_found",)
                if asset not in self.assets:
                    return ("asset_not_found",)
                owned[account, asset] = owned.get((account, asset), 0) + amount
                return (OK, owned[account, asset])
            case Transfer(source, target, asset, amount):
                if source not in self.accounts or target not in self.accounts:
                    return ("account_not_found",)
                if asset not in self.assets:
                    return ("asset_not_found",)
                if owned.get((source, asset), 0) < amount:
                    return ("insufficient_funds",)
                owned[source, asset] -= amount
                owned[target, asset] = owned.get((target, asset), 0) + amount
                return (OK, owned[source, asset], owned[target, asset])
            case AddAsset(asset):
                if asset in self.assets:
                    return ("asset_exists",)
                self.assets.add(asset)
                return (OK,)
            case _:
                raise TypeError(f"the workload has no {command!r}")
