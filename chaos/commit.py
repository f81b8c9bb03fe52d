"""Which commit runs, for ledgers and reports."""

import subprocess
from pathlib import Path


def commit() -> str:
    """As git names it, with `-dirty` where files differ from it; `unknown` outside of a checkout."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()
