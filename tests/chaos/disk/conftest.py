"""Says at the end of a run what this machine could not do to its disks: a skip that nobody sees proves nothing."""

import pytest


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reasons: dict[str, int] = {}
    for report in terminalreporter.stats.get("skipped", []):
        if "chaos/disk" in report.nodeid and isinstance(report.longrepr, tuple):
            reason = str(report.longrepr[2]).removeprefix("Skipped: ")
            reasons[reason] = reasons.get(reason, 0) + 1
    for reason, count in sorted(reasons.items()):
        text = f"{count} tests of real disks DID NOT RUN: {reason}"
        terminalreporter.write_line(text, yellow=True, bold=True)
