"""Opens what a fault left behind and says which of the allowed states it is; in a process of its own.

`python -m chaos.disk.judge` reads one question per line on stdin and answers each with one line. LMDB may abort or be
killed by SIGBUS on a damaged file: whoever asks takes the end of this process as an answer, too.
"""

import sys
from pathlib import Path

import msgspec
from msgspec import Struct

from chaos.disk.history import Digests
from chaos.disk.mutants import MUTANTS
from chaos.disk.steps import Log, life, play
from chaos.disk.writer import Inline, Noting, open_journal_storage, open_store
from cluster.consensus.journal import Journal, JournalRefused, Loaded
from statemachine.codec import UnknownFormat
from statemachine.inspection import inspect_here
from statemachine.store_files import StoreError

TAIL_BYTES_MAX = 1 << 30
MORE_STEPS = 3


class Question(Struct, frozen=True):
    """acked, begun: the last step said to be durable, and the last that may have reached the disk at all.

    goes_on: then also write some more steps, close, open and look again.
    """

    kind: str
    folder: str
    seed: int
    lives: list[int]
    acked: int
    begun: int
    goes_on: bool = False


class Verdict(Struct, frozen=True):
    """outcome: holds, lost (what is there is none of the allowed states) or unopenable. step: the state found."""

    outcome: str
    step: int = 0
    detail: str = ""

    @property
    def holds(self) -> bool:
        return self.outcome == "holds"


_digests: dict[int, Digests] = {}


def judge(question: Question) -> Verdict:
    return judge_journal(question) if question.kind == "journal" else judge_store(question)


def judge_journal(question: Question) -> Verdict:
    folder = Path(question.folder)
    try:
        storage = open_journal_storage(folder)
        try:
            found = storage.load(tail_bytes_max=TAIL_BYTES_MAX)
        finally:
            storage.close()
    except (JournalRefused, OSError) as error:
        return Verdict("unopenable", detail=str(error))
    verdict = match(question, found)
    return _goes_on(question, verdict) if verdict.holds and question.goes_on else verdict


def match(question: Question, found: Loaded) -> Verdict:
    """The newest step that leaves just this log, from the last acknowledged to the last begun."""
    log = Log(question.seed, question.lives)
    while log.steps < question.acked:
        log.advance()
    nearest = log.difference(found)
    verdict = Verdict("lost", log.steps, f"after step {log.steps}, which was acknowledged: {nearest}")
    while True:
        if not log.difference(found):
            verdict = Verdict("holds", log.steps)
        if log.steps >= question.begun:
            return verdict
        log.advance()


def _goes_on(question: Question, verdict: Verdict) -> Verdict:
    """A log that can be read but not written, or not read again, is none."""
    committer = Noting(Inline(), quiet=True)
    failures: list[BaseException] = []
    lives = [*question.lives, verdict.step]
    try:
        journal = Journal(
            open_journal_storage(Path(question.folder)), committer, on_synced=lambda: None, on_failed=failures.append
        )
        for log, step in life(question.seed, lives):
            play(journal, log, step)
            journal.flush()
            if log.steps >= verdict.step + MORE_STEPS:
                break
        journal.close()
    except JournalRefused as error:
        return Verdict("unopenable", verdict.step, f"the second time: {error}")
    if failures:
        return Verdict("lost", verdict.step, f"it takes no more: {failures[0]!r}")
    again = judge_journal(Question("journal", question.folder, question.seed, lives, log.steps, log.steps))
    return verdict if again.holds else again


def judge_store(question: Question) -> Verdict:
    folder = Path(question.folder)
    try:
        store = open_store(folder)
        try:
            state = store.load()
            index = store.stored_index
        finally:
            store.close()
        findings = inspect_here(folder).findings if state is not None else []
    except (StoreError, UnknownFormat, OSError) as error:
        return Verdict("unopenable", detail=f"{type(error).__name__}: {error}")
    if not question.acked <= index <= question.begun:
        return Verdict("lost", index, f"it stands at {index}; acknowledged {question.acked}, begun {question.begun}")
    if findings:
        return Verdict("lost", index, findings[0])
    wanted = _digests.setdefault(question.seed, Digests(question.seed)).at(index)
    if state is not None and state.meta.digest.hex() != wanted:
        return Verdict("lost", index, f"digest {state.meta.digest.hex()} at {index}, not {wanted}")
    return Verdict("holds", index)


def main() -> None:
    # What is judged has had its power cut already. Syncing while it is read only costs time.
    MUTANTS["nosync"]()
    MUTANTS["no-folder-sync"]()
    decoder = msgspec.json.Decoder(Question)
    for line in sys.stdin.buffer:
        sys.stdout.buffer.write(msgspec.json.encode(judge(decoder.decode(line))) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
