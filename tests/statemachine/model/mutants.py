"""Is the side-by-side test awake? Bugs put into copies of the rules, one at a time; each must be noticed.

python -m tests.statemachine.model.mutants: exit 1 when one survives. A mutant whose text is not in the
rules any more is an error too: write it anew.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[3]
SEEDS = 400


class Mutant(NamedTuple):
    """What would be wrong, where, the text and what it is replaced by."""

    wrong: str
    file: str
    text: str
    instead: str


MUTANTS = [
    Mutant("a unit given back is not held", "settlement.py", "state.hold(payer, 1)", "pass"),
    Mutant("a closed session's orders trade on", "rules/sessions.py", "    session.end()\n", ""),
    Mutant("a fee is rounded down", "fees.py", "(after + BPS - 1) // BPS", "after // BPS"),
    Mutant("a hold forgets the second rounding", "fees.py", "+ BPS - 1) // BPS + 1\n", "+ BPS - 1) // BPS\n"),
    Mutant("a budget pays fees on top", "fees.py", "budget_units * BPS // (BPS + bps)", "budget_units"),
    Mutant(
        "a hold counts the maker's rate only", "matching.py", "max(order.maker_bps, order.taker_bps)", "order.maker_bps"
    ),
    Mutant(
        "a partial fill does not free the book's lots",
        "matching.py",
        "        level.lots -= lots\n        maker",
        "        maker",
    ),
    Mutant(
        "the band is not checked at execution", "matching.py", "            return PRICE_BAND\n", "            pass\n"
    ),
    Mutant(
        "one step too many",
        "matching.py",
        "        if steps == STEPS_MAX:\n            return FILL",
        "        if steps > STEPS_MAX:\n            return FILL",
    ),
    Mutant(
        "expired makers trade",
        "matching.py",
        "and maker.is_past(now_us):\n            state.expire",
        "and False:\n            state.expire",
    ),
    Mutant(
        "cancel_oldest stops the taker",
        "matching.py",
        "state.close(maker, CANCELED, SELF_TRADE)\n                continue",
        "state.close(maker, CANCELED, SELF_TRADE)\n                return SELF_TRADE",
    ),
    Mutant(
        "cancel_both lets the maker stand",
        "matching.py",
        "if mode is CANCEL_BOTH:\n                state.close(maker, CANCELED, SELF_TRADE)\n",
        "if mode is CANCEL_BOTH:\n",
    ),
    Mutant(
        "fok counts one's own lots",
        "matching.py",
        "                    return False\n            else:\n                needed",
        "                    pass\n            if True:\n                needed",
    ),
    Mutant(
        "fok counts expired lots",
        "matching.py",
        "            if maker.is_past(now_us):\n                maker",
        "            if False:\n                maker",
    ),
    Mutant(
        "post-only sees expired makers",
        "matching.py",
        "            if not maker.is_past(state.now_us):\n                return True",
        "            return True",
    ),
    Mutant(
        "the buyer pays its fee from available",
        "settlement.py",
        "taker_fee_units, earned_units, taker_buys, trade_id",
        "taker_fee_units, earned_units, False, trade_id",
    ),
    Mutant(
        "the maker's fee starts anew with each fill",
        "settlement.py",
        "charge(maker.maker_notional_units, ",
        "charge(0, ",
    ),
    Mutant("the seller delivers lots, not units", "settlement.py", "lots * instrument.base_unit", "lots"),
    Mutant(
        "a replacement holds for what has filled too",
        "rules/orders.py",
        "instrument, old.side, leaves_notional_units, leaves_lots,",
        "instrument, old.side, price_ticks * quantity_lots * notional_unit, quantity_lots,",
    ),
    Mutant(
        "a larger quantity keeps its place",
        "rules/orders.py",
        "quantity_lots < old.quantity_lots\n    mode",
        "quantity_lots != old.quantity_lots\n    mode",
    ),
    Mutant(
        "a replacement forgets what filled", "rules/orders.py", "    order.notional_units = old.notional_units\n", ""
    ),
    Mutant(
        "a replacement enters below what filled",
        "rules/orders.py",
        "if quantity_lots <= old.filled_lots:",
        "if quantity_lots < old.filled_lots:",
    ),
    Mutant("a reduction keeps its old key", "rules/orders.py", "    order.key = state.key\n", ""),
    Mutant(
        "a key names orders of other instruments",
        "rules/orders.py",
        "if command.symbol and command.symbol != instrument.symbol:",
        "if False:",
    ),
    Mutant(
        "a key names an order that is closed",
        "state.py",
        "            del by_key[order.key]\n",
        "            pass\n",
    ),
    Mutant(
        "a sell's collar is rounded down",
        "rules/entry.py",
        "max(1, -(-reference_ticks * (BPS - collar_bps) // BPS))",
        "max(1, reference_ticks * (BPS - collar_bps) // BPS)",
    ),
    Mutant(
        "a stale reference prices market orders",
        "rules/entry.py",
        "if not instrument.reference_is_fresh(state.now_us):",
        "if False:",
    ),
    Mutant("one open order too many", "rules/entry.py", "open_before >= instrument", "open_before > instrument"),
    Mutant(
        "an expired session takes orders",
        "rules/entry.py",
        "session is None or session.deadline_us <= now_us",
        "session is None",
    ),
    Mutant(
        "a mass cancel reaches halted instruments", "rules/sessions.py", "order.instrument.mode is not HALTED and", ""
    ),
    Mutant("a mass cancel takes later orders too", "rules/sessions.py", "order.order_id > sweep.order_id_max or", ""),
    Mutant(
        "a mass cancel misses orders reduced since", "rules/sessions.py", "if order.priority <= sweep", "if 0 > sweep"
    ),
    Mutant(
        "a beat revives an expired session",
        "rules/sessions.py",
        "session = live_session(account, command.session, state.now_us)",
        "session = account.sessions.get(command.session)",
    ),
    Mutant(
        "a time step ignores its chunk",
        "rules/time.py",
        "    while chunk > 0:\n        due",
        "    while True:\n        due",
    ),
    Mutant("a majority of those heard is enough", "rules/time.py", "count * 2 > replicas", "count * 2 > len(digests)"),
    Mutant("those unheard are not waited for", "rules/time.py", "+ replicas - len(digests)) * 2", ") * 2"),
    Mutant("a voided withdrawal stays held", "rules/money.py", "    state.release(", "    0 and state.release("),
    Mutant("supply has no bound", "rules/money.py", "if supply_units > asset.supply_units_max:", "if False:"),
    Mutant(
        "an older reference replaces a newer",
        "rules/listing.py",
        "if command.observed_at_us <= instrument.reference_at_us:",
        "if False:",
    ),
    Mutant("keys are not counted", "machine.py", "account.count_key(bucket)", "pass"),
    Mutant("a key answers any body", "machine.py", "if known.fingerprint == fingerprint:", "if True:"),
    Mutant(
        "refusals are not remembered",
        "machine.py",
        "            record = KeyRecord(",
        "            if isinstance(results[-1], Refused):\n                continue\n            record = KeyRecord(",
    ),
    Mutant(
        "a restart sorts the book by id", "state.py", "key=lambda one: one.priority", "key=lambda one: one.order_id"
    ),
    Mutant("a holiday is a weekday", "calendar.py", "        if exception == day:", "        if False:"),
    Mutant("any command uses the keys kept for cancels", "machine.py", "if isinstance(body, CANCELS):", "if True:"),
    Mutant("no cancel beyond the quota of keys", "machine.py", "if isinstance(body, CANCELS):", "if False:"),
    Mutant(
        "cancels have keys without end",
        "machine.py",
        "            if account.keys_live >= keys_max:",
        "            if False:",
    ),
]


def is_there(mutant: Mutant) -> bool:
    return mutant.text in (ROOT / "statemachine" / mutant.file).read_text("utf-8")


def survives(mutant: Mutant, place: Path) -> bool:
    """Does the side-by-side run pass with this bug in it?"""
    copy = place / "statemachine"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(ROOT / "statemachine", copy, ignore=shutil.ignore_patterns("__pycache__"))
    file = copy / mutant.file
    source = file.read_text("utf-8")
    file.write_text(source.replace(mutant.text, mutant.instead), "utf-8")
    run = subprocess.run(
        [sys.executable, "-m", "tests.statemachine.model.explore", "--whole", "--count", str(SEEDS)],
        env=os.environ | {"PYTHONPATH": f"{place}{os.pathsep}{ROOT}", "PYTHONDONTWRITEBYTECODE": "1"},
        cwd=place,
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode and f'"{copy}' not in run.stderr and "model:" not in run.stderr:
        raise LookupError(f"mutant {mutant.wrong!r} did not run:\n{run.stderr[-2000:]}")
    return run.returncode == 0


def survivors() -> list[str]:
    """The mutants that nothing noticed. A copy without a bug has to pass, or their deaths would prove nothing."""
    with tempfile.TemporaryDirectory() as place:
        if not survives(Mutant("nothing", "fees.py", "BPS", "BPS"), Path(place)):
            raise LookupError("the rules as they are do not pass; mutants tell nothing")
        alive = [mutant.wrong for mutant in MUTANTS if is_there(mutant) and survives(mutant, Path(place))]
    gone = [
        f"{mutant.wrong}: not in {mutant.file} any more, write it anew" for mutant in MUTANTS if not is_there(mutant)
    ]
    return alive + gone


def main() -> int:
    alive = survivors()
    for wrong in alive:
        print(f"survived: {wrong}")
    print(f"{len(MUTANTS) - len(alive)} of {len(MUTANTS)} noticed")
    return 1 if alive else 0


if __name__ == "__main__":
    sys.exit(main())
