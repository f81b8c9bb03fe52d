"""One run in a process of its own, which ends with us: what a run breaks in this process, the next must not see."""

import os
import signal
import subprocess
import sys

import msgspec

from chaos.check.verdict import Verdict
from chaos.live.playing import Asked
from chaos.report.page import VERDICT, read_verdict
from cluster.launcher import death_wish

PROGRAM = (sys.executable, "-P", "-m", "node.cli.main", "chaos", "run")
STOP_S = 60.0
TALK_BYTES = 600


def run_apart(asked: Asked) -> tuple[Verdict | None, str]:
    """The verdict, or None and why there is none. Raises KeyboardInterrupt, when the run has ended."""
    words = [asked.scenario, f"--seconds={asked.seconds}", f"--seed={asked.seed}", f"--out={asked.folder}"]
    words += [f"--{name}={value}" for name, value in (("shape", asked.shape), ("engine", asked.program)) if value]
    process = subprocess.Popen(
        [*PROGRAM, *words, "--json"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=death_wish(os.getpid()),  # noqa: PLW1509 - prctl alone, which takes no lock
    )
    try:
        _, talk = process.communicate()
    except KeyboardInterrupt:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=STOP_S)
        raise
    verdict = read_verdict(asked.folder) if (asked.folder / VERDICT).exists() else None
    return verdict, "" if verdict is not None else _last_words(talk)


def _last_words(talk: bytes) -> str:
    return talk[-TALK_BYTES:].decode("utf-8", "replace").strip()


def examples(verdict: Verdict) -> str:
    """The first thing that a verdict found wrong, on one line."""
    for check in verdict.checks:
        if check.verdict != "pass":
            example = msgspec.json.encode(check.examples[0]).decode()[:200] if check.examples else ""
            return f"{check.name}: {check.why} {example}".strip()
    return ""
