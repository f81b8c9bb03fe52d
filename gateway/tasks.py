"""Ends tasks for certain: some libraries swallow a cancellation that comes in the middle of their work."""

import asyncio
from typing import Any

AGAIN_S = 0.1
TRIES_MAX = 50


async def end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel until they are done. Raises RuntimeError for one that can't be ended, what tasks raised is dropped."""
    left = {task for task in tasks if not task.done()}
    for _ in range(TRIES_MAX):
        if not left:
            break
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=AGAIN_S)
    await asyncio.gather(*(task for task in tasks if task.done()), return_exceptions=True)
    if left:
        raise RuntimeError(f"can't be ended: {sorted(task.get_name() for task in left)}")
