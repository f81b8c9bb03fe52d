"""`python -m gateway GATEWAY.toml`: run one gateway in the foreground, until SIGTERM."""

import sys
from pathlib import Path

from gateway.config import InvalidGateway, read_gateway

EXIT_USAGE = 2


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: python -m gateway GATEWAY.toml", file=sys.stderr)
        return EXIT_USAGE
    try:
        config = read_gateway(Path(arguments[0]))
    except InvalidGateway as error:
        print(f"{error.code}: {error}", file=sys.stderr)
        return EXIT_USAGE
    from gateway.app import run_gateway  # noqa: PLC0415 - a bad file is told before a second of imports

    return run_gateway(config)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
