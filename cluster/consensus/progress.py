"""What a leader knows of one follower, and how much it may send ahead of the follower's answers."""

from collections import deque

# A follower answers only after its own sync, so the window covers a slow disk, not only the network.
WINDOW_BYTES = 8 << 20
WINDOW_MESSAGES = 256


class Progress:
    """While probing, one message at a time looks for where the logs agree; then entries are pipelined.

    next_index: the next entry to send. matched_index: agreed and synced there.
    joined: it counts. barrier_index: a member on a new disk counts again when it has this entry, and it is committed.
    stranded: its next entry is trimmed here; only a snapshot helps.
    """

    __slots__ = (
        "acked_sequence",
        "barrier_index",
        "commit_sent",
        "disk_id",
        "flight",
        "flight_bytes",
        "forgetting",
        "full",
        "heard_at",
        "joined",
        "matched_index",
        "next_index",
        "probe_sent",
        "probing",
        "refusals_count_from",
        "stored_index",
        "stranded",
    )

    def __init__(self, next_index: int, *, heard_at: float = 0.0) -> None:
        self.next_index = next_index
        self.matched_index = 0
        self.stored_index = 0  # never heard: nothing may be trimmed
        self.acked_sequence = 0
        self.commit_sent = 0
        self.probing = True
        self.probe_sent = False
        self.refusals_count_from = 0
        self.forgetting = False
        self.stranded = False
        self.joined = True
        self.full = False
        self.disk_id = ""
        self.barrier_index = 0
        self.heard_at = heard_at
        self.flight: deque[tuple[int, int]] = deque()  # (last index, bytes) of what is unanswered
        self.flight_bytes = 0

    def may_send(self) -> bool:
        if self.probing:
            return not self.probe_sent
        return self.flight_bytes < WINDOW_BYTES and len(self.flight) < WINDOW_MESSAGES

    def sent(self, last_index: int, size: int, commit_index: int) -> None:
        self.probe_sent = True
        self.commit_sent = commit_index
        if last_index >= self.next_index:
            self.next_index = last_index + 1
            self.flight.append((last_index, size))
            self.flight_bytes += size

    def link_lost(self) -> None:
        """What was in flight may be gone: find out anew where the follower is."""
        self._probe_from(self.matched_index + 1 if self.matched_index else self.next_index)

    def accepted(self, matched_index: int) -> None:
        self.forgetting = False
        self.matched_index = max(self.matched_index, matched_index)
        self.next_index = max(self.next_index, self.matched_index + 1)
        self.probing = self.probe_sent = False
        while self.flight and self.flight[0][0] <= self.matched_index:
            self.flight_bytes -= self.flight.popleft()[1]

    def refused(self, retry_index: int, sequence: int, newest_sequence: int) -> bool:
        """Go back. Refusals of what was sent before we went back say nothing new, so they don't count.

        Taking the newest of them is what makes the library go forward again, for ever (audit F2).

        True: it has forgotten entries that it had acknowledged, and is sent them again. One refusal of such an
        entry may be older than the acknowledgement; the next was asked for after it.
        """
        if sequence < self.refusals_count_from:
            return False
        self.refusals_count_from = newest_sequence + 1
        forgot = self.forgetting and retry_index <= self.matched_index
        self.forgetting = not forgot and retry_index <= self.matched_index
        if forgot:
            self.matched_index = retry_index - 1
        self._probe_from(max(self.matched_index + 1, min(retry_index, self.next_index)))
        return forgot

    def _probe_from(self, next_index: int) -> None:
        self.next_index = next_index
        self.probing = True
        self.probe_sent = False
        self.commit_sent = 0
        self.flight.clear()
        self.flight_bytes = 0
