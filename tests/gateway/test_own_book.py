"""Our own book keeps its best prices without looking at all levels: a naive one says the same."""

from hypothesis import given
from hypothesis import strategies as st

from gateway.projection.books import OwnBook

CHANGES = st.lists(
    st.tuples(st.sampled_from(("buy", "sell")), st.integers(1, 12), st.integers(0, 5), st.booleans()), max_size=60
)


@given(CHANGES)
def test_the_best_is_that_of_all_levels(changes: list[tuple[str, int, int, bool]]) -> None:
    book = OwnBook("AAA-USD")
    naive: dict[str, dict[int, int]] = {"buy": {}, "sell": {}}
    for side, price_e9, size_e9, looks in changes:
        there = naive[side].get(price_e9, 0)
        book.add(side, price_e9, size_e9 - there)
        naive[side].pop(price_e9, None)
        if size_e9:
            naive[side][price_e9] = size_e9
        if looks:
            _holds(book, naive)
    _holds(book, naive)


def _holds(book: OwnBook, naive: dict[str, dict[int, int]]) -> None:
    assert book.best("buy") == max(naive["buy"].items(), default=(0, 0))
    assert book.best("sell") == min(naive["sell"].items(), default=(0, 0))
