"""Two opinions on one run: what the search calls impossible without an index, index replay does not call right."""

from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given, settings
from hypothesis import strategies as st

from chaos.check.run import check_run
from tests.chaos.check.made import make
from tests.chaos.check.spoiled import Told

KINDS = ("read_account", "read_open_orders", "read_reference")


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 3), kind=st.sampled_from(KINDS), one=st.integers(0, 500), other=st.integers(0, 500))
def test_a_read_with_the_answer_of_another(seed: int, kind: str, one: int, other: int) -> None:
    parts = make(seed, 250)
    told = Told(parts)
    first, *_ = told.acked(kind, consistency="linearizable")
    args = {name: value for name, value in first[0].args.items() if name in ("account", "symbol")}
    alike = [
        answer
        for call, answer in told.acked(kind, consistency="linearizable")
        if all(call.args.get(name) == value for name, value in args.items())
    ]
    target, source = alike[one % len(alike)], alike[other % len(alike)]
    told.change(target, answer=source.answer)
    with TemporaryDirectory() as folder:
        verdict = check_run(parts.write(Path(folder) / "run"))
    red = {check.name for check in verdict.checks if check.verdict != "pass"}
    # At its index only one answer is right, whatever the search can explain.
    assert ("reads" in red) == (target.answer != source.answer)
    assert red <= {"reads", "registers", "money"}
    if "registers" in red:
        assert "reads" in red
