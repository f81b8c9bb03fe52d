"""The event stream: ordered, without gap or repeat, at whichever member it was read on, and what the log leads to."""

from itertools import groupby
from typing import Any

from chaos.check import event_words, words
from chaos.check.judging import Wrong, invalid, judge
from chaos.check.replay import Replayed
from chaos.check.told import Told
from chaos.check.verdict import Check
from chaos.history.records import Event


def check_events(told: Told, done: Replayed) -> Check:
    if lacks := told.lacks("log.jsonl", "events.jsonl"):
        return invalid("events", lacks)
    if not told.events:
        return invalid("events", "no event was read")
    switches = sum(before.source != after.source for before, after in zip(told.events, told.events[1:], strict=False))
    counts = {"events": len(told.events), "switches": switches}
    wrong = _sequence(told.events)
    last = told.events[-1].index
    if not wrong:
        by_index = {index: list(group) for index, group in groupby(told.events, lambda event: event.index)}
        for index in sorted({*by_index, *done.happened}):
            if index <= last:
                wrong += _entry(done, index, by_index.get(index, []))
    unread = [index for index in done.happened if last < index <= told.final.index]
    if unread and not wrong:
        return invalid("events", f"reading ended at index {last}; {len(unread)} entries with events follow", counts)
    return judge("events", "every event once, in order, as the log makes them", wrong, counts)


def _sequence(events: list[Event]) -> Wrong:
    """(index, seq) goes up; inside an entry it counts up from zero."""
    wrong: Wrong = []
    index, seq = 0, -1
    for event in events:
        after = (event.index, event.seq)
        shown = {"after": f"{index}.{seq}", "event": f"{event.index}.{event.seq}", "source": event.source}
        if after <= (index, seq):
            wrong.append((f"event {event.index}.{event.seq} comes again, or too late", shown))
        elif event.seq != (seq + 1 if event.index == index else 0):
            wrong.append((f"before event {event.index}.{event.seq} one is missing", shown))
        index, seq = max((index, seq), after)
    return wrong


def _entry(done: Replayed, index: int, events: list[Event]) -> Wrong:
    """The events of one entry against those that it must have led to: as many, in their order, in every field."""
    time_us, expected = done.happened.get(index, (0, []))
    if len(expected) != len(events):
        why = f"index {index} leads to {len(expected)} events, {len(events)} were told"
        return [(why, {"told": [f"{event.kind} {event.seq}" for event in events]})]
    wrong: Wrong = []
    for one, event in zip(expected, events, strict=True):
        should = event_words.told(done.model, one, time_us)
        found = {"type": event.kind, **event.fields}
        names = [
            name
            for name in {**should, **found}
            if name not in should or name not in found or not _same(should[name], found[name])
        ]
        if names:
            why = f"event {event.index}.{event.seq} tells another {names[0]}"
            wrong.append((why, {"told": found, "ledger": words.shown(should)}))
    return wrong


def _same(expected: Any, said: Any) -> bool:
    if isinstance(expected, dict) and isinstance(said, dict):
        return expected.keys() == said.keys() and all(words.same(one, said[name]) for name, one in expected.items())
    return words.same(expected, said)
