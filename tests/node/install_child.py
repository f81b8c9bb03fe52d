"""One member that installs a snapshot: `python -m ... DATA STEP` is killed at STEP, if there is such a step."""

import os
import signal
import sys
from pathlib import Path

from node.install import Install, decide, finish

INDEX, TERM = 70, 5
STAGED = "snapshots/incoming/" + "a" * 32


def main(data_dir: Path, step: str) -> None:
    def failpoint(name: str) -> None:
        if name == step:
            os.kill(os.getpid(), signal.SIGKILL)

    if (data_dir / STAGED).is_dir() and not (data_dir / "install.json").is_file():
        decide(data_dir, Install("c1", "m2", INDEX, TERM, STAGED), failpoint=failpoint)
    finish(data_dir, cluster_id="c1", member="m2", failpoint=failpoint)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
