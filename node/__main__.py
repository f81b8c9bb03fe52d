"""`python -m node MEMBER.toml`: run one member in the foreground, until SIGTERM."""

import sys
from pathlib import Path

from cluster.topology import InvalidTopology
from node.config import InvalidConfig, read_config

EXIT_USAGE = 2


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: python -m node MEMBER.toml", file=sys.stderr)
        return EXIT_USAGE
    try:
        config = read_config(Path(arguments[0]))
    except (InvalidConfig, InvalidTopology) as error:
        print(f"{error.code}: {error}", file=sys.stderr)
        return EXIT_USAGE
    from node.app import run_member  # noqa: PLC0415 - a bad config is told before a second of imports

    return run_member(config)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
