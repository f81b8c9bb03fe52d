"""Follows one request through the cluster: W3C trace context, spans as log lines, JSON logs.

Trace ids travel beside commands (headers, forwarding, batching), never inside them: replicated state must
not depend on who watched.
"""

import logging
import re
import secrets
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

import structlog
from msgspec import Struct

_TRACEPARENT = re.compile(r"\A([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?\Z")
_ZERO_TRACE, _ZERO_SPAN = "0" * 32, "0" * 16
_SAMPLED = 0x01

log: structlog.typing.FilteringBoundLogger = structlog.get_logger("tiebreak.trace")


class TraceContext(Struct, frozen=True, gc=False):
    """Where a span stands: the trace, its own id and its parent's."""

    trace_id: str
    span_id: str
    sampled: bool
    parent_id: str = ""

    @property
    def traceparent(self) -> str:
        """What is handed on to whoever does the next step."""
        return f"00-{self.trace_id}-{self.span_id}-{'01' if self.sampled else '00'}"

    def child(self) -> "TraceContext":
        return TraceContext(self.trace_id, secrets.token_hex(8), self.sampled, self.span_id)


def parse_traceparent(header: str) -> TraceContext | None:
    """The caller's context, or None for anything that the standard says to ignore."""
    match = _TRACEPARENT.match(header) if len(header) <= 512 else None
    if match is None:
        return None
    version, trace_id, span_id, flags, more = match.groups()
    if version == "ff" or (version == "00" and more) or trace_id == _ZERO_TRACE or span_id == _ZERO_SPAN:
        return None
    return TraceContext(trace_id, span_id, bool(int(flags, 16) & _SAMPLED))


def sampled_child(header: str) -> TraceContext | None:
    """The next step of a trace that its caller asked to be sampled, else None: most commands cost one comparison."""
    if header[-2:] != "01":
        return None
    parent = parse_traceparent(header)
    return parent.child() if parent is not None else None


def new_trace(*, sampled: bool = False) -> TraceContext:
    return TraceContext(secrets.token_hex(16), secrets.token_hex(8), sampled)


def enter(header: str) -> TraceContext:
    """The context of a request: a child of the caller's, or a new trace, unsampled, when it brings none."""
    parent = parse_traceparent(header) if header else None
    return parent.child() if parent is not None else new_trace()


@contextmanager
def span(name: str, context: TraceContext | None, **fields: object) -> Iterator[TraceContext | None]:
    """Log one span with its duration when the caller asked to be sampled; yields the context for the next step.

    An unsampled span costs one comparison.
    """
    if context is None or not context.sampled:
        yield context
        return
    own = context.child()
    began_ns = time.perf_counter_ns()
    try:
        yield own
    except BaseException as failure:
        fields["error"] = type(failure).__name__
        raise
    finally:
        record(name, own, began_ns, **fields)


def record(name: str, context: TraceContext, began_ns: int, **fields: object) -> None:
    """Log a span that ends now. began_ns: of time.perf_counter_ns."""
    if context.sampled:
        log.info(
            "span",
            name=name,
            trace_id=context.trace_id,
            span_id=context.span_id,
            parent_id=context.parent_id,
            duration_us=(time.perf_counter_ns() - began_ns) // 1000,
            **fields,
        )


def configure_logging(level: str = "info", *, member: str = "", stream: TextIO = sys.stderr) -> None:
    """One JSON object per line, ours and the libraries' alike. Times in UTC; `member` on every line."""
    number = logging.getLevelNamesMapping()[level.upper()]

    def name_member(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        return {**event, "member": member} if member else event

    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        name_member,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
    ]
    render = structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[*shared, render],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(stream),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, render],
        )
    )
    logging.basicConfig(level=max(number, logging.WARNING), handlers=[handler], force=True)
