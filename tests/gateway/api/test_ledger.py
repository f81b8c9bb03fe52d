"""What is noted of a stream's frames, and what a lost node's frames are answered."""

import json
from typing import Any

import msgspec
import pytest
from aiohttp import WSMsgType

from cluster.wire import COMMANDS_PER_FRAME_MAX
from gateway.api.errors import NoNode
from gateway.api.sockets.ledger import Ledger


def submit(commands: list[Any]) -> dict[str, Any]:
    return {"action": "submit", "id": 1, "commands": commands}


@pytest.mark.parametrize("command", [{"key": "k"}, {}, 1, {"key": 5}])
@pytest.mark.parametrize("binary", [True, False])
def test_a_frame_longer_than_nodes_take_is_not_under_way(command: Any, binary: bool) -> None:
    opcode, encode = (WSMsgType.BINARY, msgspec.msgpack.encode) if binary else (WSMsgType.TEXT, msgspec.json.encode)
    for more in (0, 1):
        ledger = Ledger()
        frame = encode(submit([command] * (COMMANDS_PER_FRAME_MAX + more)))
        ledger.sent(frame, opcode)
        assert ledger.commands == (0 if more else COMMANDS_PER_FRAME_MAX)
        assert len(ledger.unknown()) == (0 if more else 1)
        (told,) = ledger.refusals(frame, opcode, NoNode("no"))
        assert len(told[0]) < (1_000 if more else 300 * COMMANDS_PER_FRAME_MAX)


def test_a_frame_of_the_most_bytes_makes_no_answer_many_times_as_long() -> None:
    ledger = Ledger()
    ledger.sent(json.dumps(submit([{}] * 250_000)).encode(), WSMsgType.TEXT)
    assert not sum(len(data) for data, _ in ledger.unknown())
