"""`python -m gateway.worker OPTIONS`: one worker process of a gateway; its core starts it."""

import contextlib
import sys

import msgspec
import uvloop

from gateway.api.proxy import add_routes
from gateway.workers.worker import Worker, WorkerOptions
from node.tracing import configure_logging

EXIT_USAGE = 2


def main(arguments: list[str]) -> int:
    try:
        options = WorkerOptions.parse(arguments[0] if len(arguments) == 1 else "")
    except (msgspec.MsgspecError, ValueError) as error:
        print(f"a worker is started by its gateway: {error}", file=sys.stderr)
        return EXIT_USAGE
    configure_logging(member=f"worker-{options.number}")
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(Worker(options, add_routes=add_routes).run())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
