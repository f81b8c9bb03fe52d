"""Bars on stderr while a benchmark runs. Benchmarks say what they do; where nobody shows it, that costs nothing."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

_shown: list[Progress] = []
"""The bars that are up; at most one set."""


class _Of(ProgressColumn):
    """How much of how much: `3/12`, or seconds where a bar goes by the clock."""

    def render(self, task: Task) -> RenderableType:
        if task.total is None:
            return Text("")
        unit = " s" if "began" in task.fields else ""
        return Text(f"{task.completed:.0f}/{task.total:.0f}{unit}")


class _Bars(Progress):
    """Bars that go by the clock need nobody to move them."""

    def get_renderables(self) -> Iterator[RenderableType]:
        for task in self.tasks:
            if "began" in task.fields and task.total is not None:
                task.completed = min(task.total, time.monotonic() - task.fields["began"])
        yield from super().get_renderables()


@contextmanager
def shown(console: Console, words: str) -> Iterator[None]:
    """Show bars on `console` until the end, if people look at it; they leave nothing behind."""
    bars = _Bars(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        _Of(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    if not console.is_terminal:
        console.print(f"[dim]{words} ...[/]")
    with bars:
        bars.add_task(words, total=None)
        _shown.append(bars)
        try:
            yield
        finally:
            _shown.pop()


@contextmanager
def steps(words: str, count: int) -> Iterator[Callable[[str], None]]:
    """A bar of `count` steps. What it yields is called at the beginning of each, with what is done now."""
    if not _shown:
        yield lambda _: None
        return
    bars = _shown[-1]
    bar = bars.add_task(words, total=count)
    begun = 0

    def begin(now: str) -> None:
        nonlocal begun
        bars.update(bar, completed=min(begun, count), description=f"{words}: {now}")
        begun += 1

    try:
        yield begin
    finally:
        bars.remove_task(bar)


@contextmanager
def during(words: str, seconds: float) -> Iterator[None]:
    """A bar that fills within `seconds`, by the clock; for work whose length is known."""
    if not _shown or seconds <= 0:
        yield
        return
    bars = _shown[-1]
    bar = bars.add_task(words, total=seconds, began=time.monotonic())
    try:
        yield
    finally:
        bars.remove_task(bar)
