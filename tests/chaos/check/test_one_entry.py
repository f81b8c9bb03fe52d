"""One entry that holds a key three times: done, refused for another body, and told again. All three are right."""

from chaos.check.commands import check_answers
from chaos.check.logged import lines
from chaos.check.replay import replay
from chaos.check.told import Told
from chaos.history.file import History, Op
from chaos.history.records import Logged
from chaos.history.run import Run
from statemachine.codec import Envelope, encode_batch, encode_command
from statemachine.commands import AddAsset, Command, Deposit, OpenAccount

RUN = Run("t", 1, 1.0, "1+1+1", "hardened", "shipped", "", {}, "", [], [], 0)
KEY = "k"


def entry(index: int, *commands: tuple[str, str, Command]) -> list[Logged]:
    envelopes = [Envelope(scope, key, 0, encode_command(command)) for scope, key, command in commands]
    return lines(index, encode_batch(1_000_000 * index, envelopes))


def test_each_of_three_answers_is_the_ledgers() -> None:
    asset, account = AddAsset("USD", 2, 10**12), OpenAccount("alice")
    one, other = Deposit("alice", "USD", 100), Deposit("alice", "USD", 200)
    scope = "@custodian"
    log = [
        *lines(1, None),
        *entry(2, ("@operator", "a", asset), (scope, "o", account)),
        *entry(3, (scope, KEY, one), (scope, KEY, other), (scope, KEY, one)),
    ]

    def told(op: int, amount: str, answer: dict[str, str]) -> Op:
        args = {"account": "alice", "asset": "USD", "amount": amount}
        return Op(op, op, "idempotence", "deposit", "dc-a", KEY, args, op, 10 + op, "ok", 3, op == 3, dict(answer))

    refused = {"error": "key_reused"}
    ops = [told(1, "1", {"status": "done"}), told(2, "2", refused), told(3, "1", {"status": "done"})]
    run = Told(RUN, History(ops, [], [], []), log=log)
    assert check_answers(run, replay(run)).verdict == "pass"
    # What nobody was refused there is still no refusal.
    run.log = [*log[:-2], log[-1]]
    assert check_answers(run, replay(run)).verdict == "fail"
