"""How short of CPU the machine was: where programs wait for one most of the time, slow answers may be the machine's."""

from pathlib import Path

PRESSURE = Path("/proc/pressure/cpu")


def waited_us(path: Path = PRESSURE) -> int | None:
    """For how long, since the machine began, some program waited for a CPU; None where the kernel does not say."""
    try:
        some = path.read_text("ascii").splitlines()[0].split()
        return int(next(word for word in some if word.startswith("total=")).removeprefix("total="))
    except (OSError, IndexError, StopIteration, ValueError):
        return None
