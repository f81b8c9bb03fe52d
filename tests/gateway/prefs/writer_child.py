"""A process that writes preferences and says what was acknowledged, until it is killed or its disk fails."""

import asyncio
import sys
from pathlib import Path

from gateway.prefs.crdt import with_fields
from gateway.prefs.errors import StoreFailed, StoreFull
from gateway.prefs.store import Store, Writing

EXIT_REFUSED = 3


def setting(user: str, number: int) -> "Work":
    return Work(user, number)


class Work:
    """Sets one field of one user to a number, padded so that the file grows."""

    def __init__(self, user: str, number: int) -> None:
        self.user, self.number = user, number

    def __call__(self, writing: Writing) -> None:
        value = self.number.to_bytes(8, "big") + b"x" * 400
        writing.put(self.user, with_fields(writing.document(self.user), {"language": value}, writing.clock.next()))


async def main(folder: Path, users: int, limit: int) -> int:
    store = Store(folder, cluster_id="c", site="dc-a", free_bytes_min=0)
    refused = asyncio.Event()
    words: list[str] = []

    async def one(lane: int) -> None:
        for number in range(lane, limit, 4):
            try:
                await store.write(setting(f"user-{number % users}", number))
            except (StoreFull, StoreFailed) as error:
                words.append(type(error).__name__)
                refused.set()
                return
            print("acked", number, flush=True)

    await asyncio.gather(*(one(lane) for lane in range(4)))
    if not refused.is_set():
        return 0
    # Once more: a full disk is asked again, a failed one is not.
    try:
        await store.write(setting("user-late", 1))
        words.append("written")
    except (StoreFull, StoreFailed) as error:
        words.append(type(error).__name__)
    print("refused", words[0], words[-1], store.document("user-0").fields["language"].value is not None, flush=True)
    return EXIT_REFUSED


if __name__ == "__main__":
    print("open", flush=True)
    sys.exit(asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
