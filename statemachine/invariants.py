"""What must always hold. A breach is our bug: the process stops before anything is stored or answered."""


class InvariantBroken(Exception):
    """The state contradicts itself. Never caught inside the machine; the process that sees it leaves."""


def must(holds: bool, *evidence: object) -> None:
    """Raise InvariantBroken with the evidence unless `holds`. Always on, unlike assert.

    Arguments are evaluated before the call: on hot paths test first, then call must(False, ...).
    """
    if not holds:
        raise InvariantBroken(", ".join(str(part) for part in evidence))
