"""What the handlers of one node can reach: one bundle of objects, filled by app.py."""

import time
from collections.abc import Callable
from typing import Protocol

from aiohttp import web

from cluster.consensus.engine import Engine
from node.answers import Answers
from node.auth import Authenticator, Principal
from node.catalogue import Catalogue
from node.changes import Changes
from node.clock import SteadyClock
from node.config import NodeConfig
from node.door import Door
from node.errors import NodeError
from node.intake import Intake
from node.metrics import Metrics
from node.ratelimit import RateLimiter
from node.reads import Reads
from node.session_token import SessionTokens
from node.submit import Submitter
from statemachine.history import History
from statemachine.machine import Machine
from statemachine.records import Applied
from statemachine.store import Store


class Drains(Protocol):
    """A part that holds long-lived connections and gives them up in steps."""

    async def drain(self, *, timeout_ms: int) -> None:
        """Tell clients where to resume and close their connections, some at a time, within the timeout."""
        ...


class Node:
    """The objects of one member. All of them live on one event loop.

    A witness has no machine, store, history, catalogue, door, intake, submitter, answers or reads: using them
    raises AttributeError, and none of the handlers that do is routed there.
    """

    config: NodeConfig
    engine: Engine
    changes: Changes
    machine: Machine
    store: Store
    history: History
    catalogue: Catalogue
    door: Door
    intake: Intake
    submitter: Submitter
    answers: Answers
    reads: Reads
    authenticator: Authenticator
    session_tokens: SessionTokens
    limiter: RateLimiter
    clock: SteadyClock
    metrics: Metrics

    def __init__(self) -> None:
        self.ready = False
        """True once the state is loaded and the engine runs; false again when it drains."""
        self.draining = False
        self.disk_low = False
        self.started_at = time.monotonic()
        self.epoch = 1
        """Of this history: raised by a restore from backup, so that old tokens can't point into it."""
        self.on_applied: list[Callable[[Applied], None]] = []
        """Called after each applied batch, in order, once its waiters have their answers. Must not raise."""
        self.on_drain: list[Drains] = []

    @property
    def is_witness(self) -> bool:
        return self.config.is_witness

    def count(self, entry: str, error: NodeError | None) -> None:
        """Count one command that was answered: done, refused by a rule, failed definitely, or unknown."""
        if error is None:
            answer = "done"
        elif error.number < 1_000:
            answer = "refused"
        else:
            answer = "failed" if error.definite else "unknown"
        self.metrics.commands.labels(entry, answer).inc()


NODE: web.AppKey[Node] = web.AppKey("node", Node)
PRINCIPAL: web.RequestKey[Principal] = web.RequestKey("principal", Principal)
"""Who asks; set by the middleware before any handler of /v1 runs."""
REQUEST_ID: web.RequestKey[str] = web.RequestKey("request_id", str)
