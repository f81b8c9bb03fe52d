"""Readers of LOBSTER files: every packing, every type of message, and a clear word on each bad line."""

from collections.abc import Callable
from pathlib import Path

import pytest

from bench import lobster
from bench.lobster import ASK, BID, File, Kind, Level, LobsterError, Message
from tests.bench import files


@pytest.mark.parametrize("pack", [files.plain, files.gzipped, files.zipped])
def test_reads_messages_and_their_book_however_packed(pack: Callable[[Path], Path], tmp_path: Path) -> None:
    found = lobster.find(pack(tmp_path))
    assert found.book is not None
    messages = list(lobster.read_messages(found.messages))
    rows = list(lobster.read_rows(found.book))
    assert (found.messages.symbol, found.messages.levels) == ("XYZ", 1)
    assert len(messages) == len(rows) == 10
    assert messages[0] == Message(34_200_000_000_001, Kind.submit, 11, 100, 5_850_000, BID)
    assert messages[1] == Message(34_200_500_000_000, Kind.submit, 12, 50, 5_851_000, ASK)
    assert [m.kind for m in messages] == [1, 1, 1, 2, 4, 5, 3, 7, 7, 3]
    assert rows[0] == (Level(lobster.EMPTY_PRICE, 0, 5_850_000, 100),)


TIMES = [
    # text,                    nanoseconds
    ("0", 0),
    ("34200", 34_200_000_000_000),
    ("34200.5", 34_200_500_000_000),
    ("34200.00426064", 34_200_004_260_640),
    ("34200.000000001", 34_200_000_000_001),
    ("35821.088778456004", 35_821_088_778_456),  # stands so in a published file
    ("1.0000000005", 1_000_000_001),
    ("1.0000000004999", 1_000_000_000),
    ("86399.999999999", 86_399_999_999_999),
    ("86400", None),
    ("86399.9999999999", None),
    ("-1", None),
    ("1e3", None),
    ("1.", None),
    (" 1", None),
    ("", None),
    ("nan", None),
    ("٣٤٢٠٠", None),
]


@pytest.mark.parametrize(("text", "nanoseconds"), TIMES)
def test_times_are_exact(text: str, nanoseconds: int | None) -> None:
    if nanoseconds is None:
        with pytest.raises(ValueError, match="time"):
            lobster.time_ns(text)
    else:
        assert lobster.time_ns(text) == nanoseconds


BAD_MESSAGES = [
    ("1,1,11,100,5850000", "5 columns"),
    ("1,1,11,100,5850000,1,7", "7 columns"),
    ("1,8,11,100,5850000,1", "type 8"),
    ("1,0,11,100,5850000,1", "type 0"),
    ("1,1,11,100,5850000,0", "direction 0"),
    ("1,1,11,0,5850000,1", "size 0"),
    ("1,1,11,-5,5850000,1", "size -5"),
    ("1,1,11,100,0,1", "price 0"),
    ("1,1,11,100,9999999999,1", "price 9999999999"),
    ("1,1,11,1e3,5850000,1", "'1e3'"),
    ("1,1,11,1_0,5850000,1", "'1_0'"),
    ("1,1,x,100,5850000,1", "'x'"),
    ("1,7,0,0,5,-1", "a halt says"),
    ("", "1 columns"),
    ("0.5,1,11,100,5850000,1", "back in time"),
]


@pytest.mark.parametrize(("line", "said"), BAD_MESSAGES)
def test_a_bad_message_names_file_and_line(line: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "a_message_1.csv"
    path.write_text(f"1,1,10,100,5850000,1\n{line}\n")
    with pytest.raises(LobsterError, match=said) as raised:
        list(lobster.read_messages(File(path)))
    assert str(raised.value).startswith(f"{path}:2: ")


BAD_ROWS = [
    ("5851000,50,5850000", "3 columns"),
    ("5851000,50,5850000,", "''"),
    ("5851000,0,5850000,1", "price 5851000 with size 0"),
    ("9999999999,5,5850000,1", "price 9999999999 with size 5"),
    ("5851000,-5,5850000,1", "size -5"),
]


@pytest.mark.parametrize(("line", "said"), BAD_ROWS)
def test_a_bad_row_names_file_and_line(line: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "a_orderbook_1.csv"
    path.write_text(f"5851000,50,-9999999999,0\n{line}\n")
    with pytest.raises(LobsterError, match=said) as raised:
        list(lobster.read_rows(File(path)))
    assert str(raised.value).startswith(f"{path}:2: ")


def test_a_limit_stops_before_what_is_bad_behind_it(tmp_path: Path) -> None:
    path = tmp_path / "a_message_1.csv"
    path.write_text("1,1,10,100,5850000,1\nrubbish\n")
    assert len(list(lobster.read_messages(File(path), 1))) == 1


def test_what_is_no_recording_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(LobsterError, match="no such file"):
        lobster.find(tmp_path / "absent.csv")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(LobsterError, match=r"neither .csv"):
        lobster.find(tmp_path / "notes.txt")
    torn = tmp_path / "torn_message_1.csv.gz"
    torn.write_bytes(files.gzipped(tmp_path).read_bytes()[:40])
    with pytest.raises(LobsterError, match=r"torn_message_1.csv.gz:\d+: "):
        list(lobster.read_messages(lobster.find(torn).messages))


def test_a_message_file_alone_has_no_book(tmp_path: Path) -> None:
    path = tmp_path / "a_message_1.csv"
    path.write_text(files.MESSAGES)
    found = lobster.find(path)
    assert found.book is None
    assert found.messages.symbol == "LOB"
