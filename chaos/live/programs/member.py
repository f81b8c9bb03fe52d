"""The shipped member, with failpoints armed around its steps: `python -P -m chaos.live.programs.member MEMBER.toml`."""

import os
import sys
from pathlib import Path

from chaos.live.programs import ARCHIVE, FAILPOINTS
from chaos.live.programs.archive import keep
from chaos.live.programs.failpoints import UnknownFailpoint, arm, parse
from node.__main__ import EXIT_USAGE
from node.__main__ import main as run_shipped


def main(arguments: list[str]) -> int:
    try:
        failpoints = parse(os.environ.get(FAILPOINTS, ""))
    except UnknownFailpoint as error:
        print(error, file=sys.stderr)
        return EXIT_USAGE
    if archive := os.environ.get(ARCHIVE):
        keep(Path(archive))
    arm(failpoints)
    return run_shipped(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
