"""The search agrees with trying all orders, and with index replay where the index tells the truth."""

from itertools import permutations
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from chaos.check.registers import Account, Register
from chaos.check.searched import earliest
from chaos.check.wgl import NEVER, Timed, check

VALUES = ("", "a", "b")
reads = st.tuples(st.just(("read",)), st.sampled_from(VALUES))
writes = st.tuples(st.tuples(st.just("write"), st.sampled_from(VALUES[1:])), st.none())
swaps = st.tuples(st.tuples(st.just("cas"), st.sampled_from(VALUES), st.sampled_from(VALUES[1:])), st.booleans())


@st.composite
def histories(draw: Any, most: int = 6) -> list[Timed]:
    """Short ones with many overlaps and equal times; some operations never end."""
    ops = []
    for number in range(draw(st.integers(1, most))):
        doing, said = draw(st.one_of(reads, writes, swaps))
        begin = draw(st.integers(0, 8))
        ends = draw(st.booleans()) or draw(st.booleans()) or doing == ("read",)
        ops.append(Timed(begin, begin + draw(st.integers(0, 5)) if ends else NEVER, doing, said, number))
    return ops


def explained(ops: list[Timed]) -> bool:
    """By trying every order of every choice of the unknown ones."""
    unknown = [op for op in ops if not op.is_known]
    known = [op for op in ops if op.is_known]
    for choice in range(1 << len(unknown)):
        chosen = known + [op for at, op in enumerate(unknown) if choice >> at & 1]
        if any(in_time(order) and legal(order) for order in permutations(chosen)):
            return True
    return False


def in_time(order: tuple[Timed, ...]) -> bool:
    return not any(later.end_at < op.begin_at for at, op in enumerate(order) for later in order[at + 1 :])


def legal(order: tuple[Timed, ...]) -> bool:
    model = Register()
    state: str | None = model.start()
    for op in order:
        if state is None:
            return False
        state = model.step(state, op)
    return state is not None


@settings(max_examples=250, deadline=None)
@given(histories())
def test_the_search_finds_what_trying_all_orders_finds(ops: list[Timed]) -> None:
    judged = check(ops, Register(), timeout_s=20)
    assert judged.answer == ("ok" if explained(ops) else "illegal")
    if judged.answer == "illegal":
        assert judged.stuck is not None
        assert judged.stuck.number not in judged.longest


@st.composite
def ledgers(draw: Any) -> tuple[list[Timed], list[int], list[int]]:
    """One account: operations in the order of their index, when each took effect, and what reads really saw."""
    ops, truth, moments = [], [], []
    state = now = 0
    for number in range(draw(st.integers(1, 14))):
        now += draw(st.integers(1, 3))
        begin, end = now - draw(st.integers(0, 6)), now + draw(st.integers(0, 6))
        kind = draw(st.sampled_from(("add", "take", "read")))
        units = draw(st.integers(1, 4))
        said: int | bool | None = None
        if kind == "add":
            state += units
        elif kind == "take":
            said = state >= units
            state -= units if said else 0
        else:
            said = state
        truth.append(state)
        moments.append(now)
        ops.append(Timed(begin, end, ("read",) if kind == "read" else (kind, units), said, number))
    return ops, truth, moments


@settings(max_examples=200, deadline=None)
@given(ledgers())
def test_what_the_index_explains_the_search_explains(made: tuple[list[Timed], list[int], list[int]]) -> None:
    assert check(made[0], Account(), timeout_s=20).answer == "ok"


@settings(max_examples=200, deadline=None)
@given(ledgers(), st.integers(0, 13))
def test_what_no_index_could_explain_the_search_refuses(
    made: tuple[list[Timed], list[int], list[int]], at: int
) -> None:
    """A read of more than was ever there."""
    ops = made[0]
    wrong = ops[at % len(ops)]
    most = sum(op.doing[1] for op in ops if op.doing[0] == "add")
    ops.append(Timed(wrong.begin_at, wrong.end_at, ("read",), most + 1, len(ops)))
    assert check(ops, Account(), timeout_s=20).answer == "illegal"


@settings(max_examples=200, deadline=None)
@given(ledgers(), st.integers(1, 13))
def test_the_beginning_of_a_good_history_is_good(made: tuple[list[Timed], list[int], list[int]], count: int) -> None:
    """Answers that tell of what is left out must not be held against the rest."""
    assert check(earliest(made[0], count), Account(), timeout_s=20).answer == "ok"


def test_a_search_that_takes_too_long_says_so() -> None:
    ops = [Timed(number % 3, 10_000 + number, ("write", str(number)), None, number) for number in range(18)]
    ops.append(Timed(20_000, 20_001, ("read",), "never", 18))
    assert check(ops, Register(), timeout_s=0.05).answer == "unknown"


def test_equal_times_overlap() -> None:
    """Intervals are closed: on a clock that ticks rarely, an end and a beginning may be one moment."""
    write, read = Timed(1, 5, ("write", "a"), None, 0), Timed(0, 1, ("read",), "a", 1)
    assert check([write, read], Register(), timeout_s=1).answer == "ok"
    assert check([Timed(2, 5, ("write", "a"), None, 0), read], Register(), timeout_s=1).answer == "illegal"
