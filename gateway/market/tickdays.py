"""What becomes of finished days of the tick log: sealed, written as Parquet, and in the end deleted."""

from datetime import date, timedelta
from pathlib import Path

import structlog
from msgspec import Struct

from gateway.market.parquet import NoExports, write_parquet
from gateway.market.tickblocks import day_files
from gateway.market.ticklog import prune, seal, unsealed_days

log: structlog.typing.FilteringBoundLogger = structlog.get_logger("tiebreak.ticklog")


class Tidied(Struct, frozen=True):
    sealed: list[str]
    exported: list[str]
    pruned: list[str]


def tidy(folder: Path, *, today: str, keep_days: int, exports: Path | None = None) -> Tidied:
    """Seal what is finished; write what is sealed as Parquet; delete days older than `keep_days`. Blocks.

    Run it in a thread, some minutes after midnight and at the start; it may be cut off anywhere and run again.
    A day that is to be written as Parquet is not deleted before it is.

    exports: where Parquet goes; None writes none. today: YYYY-MM-DD, in UTC.
    """
    sealed = unsealed_days(folder)
    for day in sealed:
        seal(folder, day)
    exported: list[str] = []
    if exports is not None:
        for day in finished_days(folder):
            if (exports / f"{day}.trades.parquet").exists() and (exports / f"{day}.quotes.parquet").exists():
                continue
            try:
                write_parquet(folder, day, exports)
            except NoExports as error:
                log.warning("days are kept, not written as Parquet", reason=str(error))
                return Tidied(sealed, [], [])
            exported.append(day)
    before = date.fromisoformat(today) - timedelta(days=keep_days)
    return Tidied(sealed, exported, prune(folder, before_day=before.isoformat()))


def finished_days(folder: Path) -> list[str]:
    """Sealed days whose ticks are still here, oldest first."""
    return [day for day in day_files(folder) if (folder / f"{day}.seal.json").exists()]
