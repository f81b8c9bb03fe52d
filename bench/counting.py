"""A counter in a running cluster: clients that raise it and read it, all that they saw kept to be judged."""

import asyncio
import time
from array import array
from collections import Counter
from dataclasses import dataclass, field

import msgspec

from bench.lines import Answered, Line
from bench.register import Read, Write
from bench.running import SETUP_TIMEOUT_MS, Running, check
from cluster.client import Client, Done
from cluster.wire import AccountView, AddAsset, OpenAccount, TransferFunds

ACCOUNT = "counter"
ASSET = "COUNT"
"""Has no decimals: each deposit of one raises the balance by one."""
PATH = f"/v1/accounts/{ACCOUNT}"
LOCAL = "?consistency=local"
CONNECT_AGAIN_S = 0.05

_decode_account = msgspec.json.Decoder(AccountView).decode


async def open_counter(cluster: Running) -> None:
    """Make the account, at zero. Raises RunError."""
    async with cluster.client("operator", timeout_ms=SETUP_TIMEOUT_MS) as operator:
        check(await operator.submit(AddAsset(asset=ASSET, scale=0)))
    async with cluster.client("custodian", ("*",), timeout_ms=SETUP_TIMEOUT_MS) as custodian:
        check(await custodian.submit(OpenAccount(account=ACCOUNT)))


def value_of(body: bytes) -> int:
    found = [balance.available for balance in _decode_account(body).balances if balance.asset == ASSET]
    return int(found[0]) if found else 0


class Raiser:
    """Raises the counter at an even rate, sent when due whether or not answers come, through one client's stream."""

    def __init__(self, client: Client, *, run: str, rate_per_s: float, frame: int = 1) -> None:
        self._client = client
        self._run = run
        self._rate_per_s = rate_per_s
        self._frame = frame
        self._stopping = False
        self.writes: list[Write] = []
        self.acknowledged_at = array("d")
        """time.monotonic() of each frame's answers, where all of it was acknowledged."""
        self.endings: Counter[str] = Counter()
        """How each write ended: `done`, or the error that the client gave up with."""

    def stop(self) -> None:
        """Send no more; `run` waits for what is under way."""
        self._stopping = True

    async def run(self) -> None:
        began = time.monotonic()
        async with self._client.stream() as stream, asyncio.TaskGroup() as group:

            async def send(writes: list[Write], keys: list[str]) -> None:
                requests = [
                    TransferFunds(key=key, account=ACCOUNT, kind="deposit", asset=ASSET, amount="1") for key in keys
                ]
                outcomes = await stream.submit(requests)
                now_ns = time.monotonic_ns()
                for write, outcome in zip(writes, outcomes, strict=True):
                    if isinstance(outcome, Done):
                        write.returned_ns, write.index = now_ns, outcome.index
                        self.endings["done"] += 1
                    else:
                        self.endings[getattr(outcome, "error", "unknown")] += 1
                if all(isinstance(outcome, Done) for outcome in outcomes):
                    self.acknowledged_at.append(now_ns / 1e9)

            while not self._stopping:
                sent = len(self.writes)
                writes = [Write(time.monotonic_ns()) for _ in range(self._frame)]
                self.writes += writes
                group.create_task(send(writes, [f"{self._run}-{sent + at}" for at in range(self._frame)]))
                await asyncio.sleep(max(0.0, began + (sent + self._frame) / self._rate_per_s - time.monotonic()))


@dataclass
class Seen:
    """What readers got. served_by and refused_by count per member; refused are all answers but 200."""

    reads: list[Read] = field(default_factory=list)
    refused: list[tuple[str, int, str]] = field(default_factory=list)
    """(member, when in time.monotonic_ns, error)"""
    lost: int = 0
    """Connections that ended before an answer came."""

    def take(self, member: str, said: Answered) -> None:
        if said.status == 200:
            self.reads.append(Read(said.called_ns, said.returned_ns, value_of(said.body), said.index, member))
        else:
            self.refused.append((member, said.returned_ns, error_of(said.body) or f"HTTP {said.status}"))

    async def get(self, line: Line, member: str, path: str) -> None:
        """One read, kept whatever comes of it."""
        try:
            self.take(member, await line.get(path))
        except (OSError, EOFError):
            self.lost += 1


def error_of(body: bytes) -> str:
    try:
        return str(msgspec.json.decode(body).get("error", ""))
    except (msgspec.DecodeError, AttributeError):
        return ""


async def read_on(url: str, member: str, token: str, seen: Seen, *, rate_per_s: float) -> None:
    """Linearizable reads of one member, one after the other, until it is canceled."""
    while True:
        try:
            line = await Line.open(url, token)
        except OSError:
            await asyncio.sleep(CONNECT_AGAIN_S)
            continue
        lost = seen.lost
        try:
            while seen.lost == lost:
                began = time.monotonic()
                await seen.get(line, member, PATH)
                await asyncio.sleep(max(0.0, began + 1 / rate_per_s - time.monotonic()))
        finally:
            line.close()
