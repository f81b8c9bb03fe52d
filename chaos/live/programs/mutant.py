"""A member with one fault of the product put in: `python -P -m chaos.live.programs.mutant NAME MEMBER.toml`.

A chaos run against it must fail; see MUTANTS for what each leaves out. The product has no such switch.
"""

import os
import sys
from collections.abc import Callable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgspec

from chaos.disk.mutants import MUTANTS as DISK_MUTANTS
from chaos.live.programs import ARCHIVE, MUTANTS
from chaos.live.programs.archive import keep
from cluster.consensus.journal import Change
from cluster.consensus.storage import LmdbStorage
from node.__main__ import EXIT_USAGE
from node.__main__ import main as run_shipped
from node.config import NodeConfig, read_config
from node.reads import Reads
from statemachine import machine
from statemachine.codec import Envelope
from statemachine.commands import AnyCommand, Deposit, Transfer
from statemachine.machine import DIGESTS_KEPT, Machine
from statemachine.records import Applied
from statemachine.results import AnyResult, Repeat
from statemachine.state import State
from statemachine.store_pinned import PinnedState
from statemachine.store_tables import KEYS, Tables, open_environment

LOSES_EVERY = 20
"""Of the deposits and transfers that the last replica applies, so many go by between two that it gets wrong."""


def _no_sync(_config: NodeConfig) -> None:
    DISK_MUTANTS["nosync"]()


def _lying_sync(_config: NodeConfig) -> None:
    """Only a crash shows it: whoever stops in order writes all of it."""
    real_write, real_close = LmdbStorage.write, LmdbStorage.close
    waiting: dict[LmdbStorage, Sequence[Change]] = {}

    def write(self: LmdbStorage, changes: Sequence[Change]) -> None:
        before, waiting[self] = waiting.get(self, ()), changes
        if before:
            real_write(self, before)

    def close(self: LmdbStorage) -> None:
        if left := waiting.pop(self, ()):
            real_write(self, left)
        real_close(self)

    LmdbStorage.write = write  # type: ignore[method-assign]
    LmdbStorage.close = close  # type: ignore[method-assign]


def _keys_not_in_snapshot(_config: NodeConfig) -> None:
    real = PinnedState.copy_to

    def copy_to(self: PinnedState, folder: Path) -> None:
        real(self, folder)
        env = open_environment(folder, 0)
        try:
            tables = Tables(env)
            tables.open_all()
            with env.begin(write=True) as transaction:
                for handle in tables.families[KEYS].values():
                    transaction.drop(handle, delete=False)
        finally:
            env.close()

    PinnedState.copy_to = copy_to  # type: ignore[method-assign]


def _read_without_quorum(_config: NodeConfig) -> None:
    async def linearizable(self: Reads, *, timeout_ms: int | None = None) -> int:
        return self._applied_index()

    Reads.linearizable = linearizable  # type: ignore[method-assign]


def _double_credit(_config: NodeConfig) -> None:
    real = Machine._run

    def run(self: Machine, applied: Applied, envelopes: list[Envelope], bodies: list[AnyCommand]) -> None:
        real(self, applied, envelopes, bodies)
        for result, body in zip(list(applied.results), bodies, strict=True):
            if isinstance(result, Repeat) and isinstance(body, Deposit | Transfer):
                machine.RULES[type(body)](self._state, body)

    Machine._run = run  # type: ignore[method-assign]


def _blind_digest(config: NodeConfig) -> None:
    real = Machine.apply

    def apply(self: Machine, index: int, payload: bytes) -> Applied:
        before = self._state.digest
        applied = real(self, index, payload)
        digest = blake2b(before + index.to_bytes(8, "big"), digest_size=32).digest()
        self._state.digest = applied.digest = digest
        self._digests[index % DIGESTS_KEPT] = (index, digest)
        return applied

    Machine.apply = apply  # type: ignore[method-assign]
    replicas = [member.name for member in config.topology.members if member.role == "replica"]
    if config.name == max(replicas):
        for command in (Deposit, Transfer):
            machine.RULES[command] = _losing(machine.RULES[command])


def _losing(rule: Callable[[State, Any], AnyResult]) -> Callable[[State, Any], AnyResult]:
    count = 0

    def applied(state: State, command: Any) -> AnyResult:
        nonlocal count
        count += 1
        if count % LOSES_EVERY == 0 and command.amount_units > 1:
            command = msgspec.structs.replace(command, amount_units=command.amount_units - 1)
        return rule(state, command)

    return applied


INSTALL: dict[str, Callable[[NodeConfig], None]] = {
    "no-sync": _no_sync,
    "lying-sync": _lying_sync,
    "keys-not-in-snapshot": _keys_not_in_snapshot,
    "read-without-quorum": _read_without_quorum,
    "double-credit": _double_credit,
    "blind-digest": _blind_digest,
}


def main(arguments: list[str]) -> int:
    if len(arguments) != 2 or arguments[0] not in INSTALL:
        print(f"usage: mutant NAME MEMBER.toml; NAME is one of {', '.join(MUTANTS)}", file=sys.stderr)
        return EXIT_USAGE
    name, path = arguments
    if archive := os.environ.get(ARCHIVE):
        keep(Path(archive))
    INSTALL[name](read_config(Path(path)))
    print(f"{name}: {MUTANTS[name]}; this member keeps no promise", file=sys.stderr)
    return run_shipped([path])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
