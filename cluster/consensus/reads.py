"""Linearizable reads: a leader proves to itself that it still leads, once for all reads that came meanwhile."""

from collections import deque
from collections.abc import Callable, Iterable

Answer = Callable[[int | None], None]


class ReadRounds:
    """One round: note the commit index, send every peer a message, wait until a majority has answered it.

    A reply counts only when it echoes a sequence that was sent after the read came in.
    """

    def __init__(self) -> None:
        self._waiting: list[Answer] = []
        self._asked: deque[tuple[int, int, list[Answer]]] = deque()  # (sequence, index, reads)

    def __len__(self) -> int:
        return len(self._waiting) + sum(len(reads) for _, _, reads in self._asked)

    def add(self, answer: Answer) -> None:
        self._waiting.append(answer)

    @property
    def wants_round(self) -> bool:
        """Reads wait and no round is under way. One round at a time gathers the most reads in each."""
        return bool(self._waiting) and not self._asked

    def begin(self, next_sequence: int, index: int) -> None:
        """A round begins: it is confirmed by replies to `next_sequence` or newer."""
        if self._waiting:
            self._asked.append((next_sequence, index, self._waiting))
            self._waiting = []

    def acked(self, sequences: Iterable[int], needed: int) -> None:
        """Answer what is confirmed. sequences: the newest that each peer echoed; needed: how many peers."""
        if not self._asked:
            return
        # A single voter is its own majority.
        confirmed = sorted(sequences, reverse=True)[needed - 1] if needed else self._asked[-1][0]
        while self._asked and self._asked[0][0] <= confirmed:
            _, index, reads = self._asked.popleft()
            for answer in reads:
                answer(index)

    def fail(self) -> None:
        """Leadership was lost: nothing may be answered from here."""
        waiting, self._waiting = self._waiting, []
        asked, self._asked = self._asked, deque()
        for answer in waiting:
            answer(None)
        for _, _, reads in asked:
            for answer in reads:
                answer(None)
