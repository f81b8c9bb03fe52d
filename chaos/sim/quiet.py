"""Keeps what simulated members log away from the terminal, for as long as they run."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Drop all log records inside. Afterwards logging is as it was: whoever simulates in-process may log, too."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
