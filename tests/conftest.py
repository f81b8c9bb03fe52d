"""What all tests share: examples that are the same on every run, and real data that is missed loudly."""

import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

# The gate says the same of the same commit; HYPOTHESIS_PROFILE=search looks further.
settings.register_profile("gate", derandomize=True, deadline=None, print_blob=True)
settings.register_profile("search", deadline=None, print_blob=True, max_examples=2_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "gate"))

MISSED = pytest.StashKey[int]()


def data_folder() -> Path | None:
    """The market data in TIEBREAK_DATA, when it is there."""
    folder = Path(os.environ.get("TIEBREAK_DATA", ""))
    return folder if os.environ.get("TIEBREAK_DATA") and folder.is_dir() else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    missed = [item for item in items if item.get_closest_marker("real_data")] if data_folder() is None else []
    for item in missed:
        item.add_marker(pytest.mark.skip(reason="no real data: set TIEBREAK_DATA"))
    config.stash[MISSED] = len(missed)


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    missed = config.stash.get(MISSED, 0)
    if missed:
        text = f"{missed} tests need the market data in TIEBREAK_DATA and DID NOT RUN; all else did"
        terminalreporter.write_line(text, yellow=True, bold=True)


def pytest_configure() -> None:
    """A shell without job control starts background jobs with interrupts ignored, and children inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
