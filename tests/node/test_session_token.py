"""Session tokens: only what this cluster signed, of this epoch, names an index."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.errors import EpochChanged, InvalidField
from node.session_token import SessionTokens

KEY = bytes(range(32))
OURS = SessionTokens(KEY, epoch=3)


@given(st.integers(0, 2**64 - 1))
def test_an_index_comes_back(index: int) -> None:
    assert OURS.read(OURS.issue(index)) == index


def test_a_token_of_another_epoch_is_refused_whichever_way() -> None:
    for epoch in (2, 4):
        with pytest.raises(EpochChanged, match=f"epoch {epoch}"):
            OURS.read(SessionTokens(KEY, epoch=epoch).issue(7))


def test_a_foreign_or_forged_token_is_refused() -> None:
    for token in (
        SessionTokens(bytes(32), epoch=3).issue(7),
        SessionTokens(KEY, epoch=3, group=1).issue(7),
        "",
        "x",
        "A" * 44,
        "A" * 1_000_000,
        "\u00e9" * 44,
        OURS.issue(7) + "AAAA",
    ):
        with pytest.raises(InvalidField):
            OURS.read(token)


@given(st.integers(0, 30), st.integers(1, 255))
def test_no_changed_byte_passes(position: int, flip: int) -> None:
    raw = bytearray(base64.urlsafe_b64decode(OURS.issue(7) + "=="))
    raw[position] ^= flip
    with pytest.raises((InvalidField, EpochChanged)):
        OURS.read(base64.urlsafe_b64encode(bytes(raw)).decode())


@given(st.text(max_size=80))
def test_no_text_is_believed(token: str) -> None:
    with pytest.raises(InvalidField):
        OURS.read(token)


def test_a_key_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        SessionTokens(b"short", epoch=1)
