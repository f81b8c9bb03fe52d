"""What single objects do, for the search of `wgl`: a register with compare-and-set, a key of a map, one account, a
reference price. A state is a plain value; None is a register that nobody wrote."""

from functools import lru_cache

from chaos.check.wgl import Timed

Price = tuple[int, str | None]
Print = tuple[int, int]
PRIME = 2**128 - 159


class Register:
    """doing: ("read",), ("write", value), ("cas", from, to). said: what a read saw; of a cas, whether it matched."""

    def start(self) -> str:
        return ""

    def step(self, state: str, op: Timed) -> str | None:
        match op.doing:
            case ("read",):
                return state if op.said == state else None
            case ("write", value):
                return str(value)
            case ("cas", was, becomes):
                if not op.is_known:
                    return str(becomes) if state == was else state
                if (state == was) is not op.said:
                    return None
                return str(becomes) if op.said else state
            case _:
                raise ValueError(f"a register can't {op.doing}")


class MapKey:
    """doing: ("get",), ("put", text), ("append", text). said: what a get saw. A key that nobody wrote is empty.

    What is appended to grows and is remembered at every step of the search: a text of 10,000 parts took 5 GiB. So a
    state is a text's length in bytes and its remainder by a prime of 128 bits, which add up as texts do.
    """

    def start(self) -> Print:
        return (0, 0)

    def step(self, state: Print, op: Timed) -> Print | None:
        match op.doing:
            case ("get",):
                return state if _print_of(op.said) == state else None
            case ("put", text):
                return _print_of(str(text))
            case ("append", text):
                more, rest = _print_of(str(text))
                return (state[0] + more, (state[1] * pow(256, more, PRIME) + rest) % PRIME)
            case _:
                raise ValueError(f"a key can't {op.doing}")


@lru_cache(maxsize=8_192)
def _print_of(text: str | None) -> Print:
    data = (text or "").encode()
    return (len(data), int.from_bytes(data) % PRIME)


class Account:
    """What one account has of one asset, where nothing is held. doing: ("add", units), ("take", units), ("read",).

    said: of a take, whether there was enough; of a read, the units.
    """

    def start(self) -> int:
        return 0

    def step(self, state: int, op: Timed) -> int | None:
        match op.doing:
            case ("add", int(units)):
                return state + units
            case ("take", int(units)):
                if not op.is_known:
                    return state - units if state >= units else state
                if (state >= units) is not op.said:
                    return None
                return state - units if op.said else state
            case ("read",):
                return state if op.said == state else None
            case _:
                raise ValueError(f"an account can't {op.doing}")


class Reference:
    """A reference price: a newer one replaces an older one. doing: ("set", seen_at, price), ("read",).

    said: of a set, whether it was the newest; of a read, the price as text, or None.
    """

    def start(self) -> Price:
        return (0, None)

    def step(self, state: Price, op: Timed) -> Price | None:
        match op.doing:
            case ("set", int(seen_at), price):
                newer = seen_at > state[0]
                if op.is_known and newer is not op.said:
                    return None
                return (seen_at, str(price)) if newer else state
            case ("read",):
                return state if op.said == state[1] else None
            case _:
                raise ValueError(f"a reference price can't {op.doing}")
