"""The whole tour on three real members, through the command line: from an empty folder to an audit of the disks."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.folder import ClusterFolder
from cluster.launcher import Launcher, run_down
from tests.cluster.test_launcher import free_ports
from tests.node.cli.support import Ran, tiebreak


class User:
    """Someone at a terminal, in one cluster's folder."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self._capfd = capfd

    def does(self, line: str, *, code: int = 0) -> Ran:
        """Run `tiebreak LINE`; it must end with this code."""
        ran = tiebreak(self._capfd, *line.split())
        assert ran.code == code, f"tiebreak {line}: exit code {ran.code}\n{ran.out}\n{ran.err}"
        return ran

    def gets(self, line: str, *, code: int = 0) -> Any:
        """The JSON of `tiebreak LINE --json`."""
        return json.loads(self.does(f"{line} --json", code=code).out)

    def waits_for_health(self) -> Any:
        for _ in range(100):
            ran = tiebreak(self._capfd, "status", "--json")
            if ran.code == 0:
                return json.loads(ran.out)
            time.sleep(0.1)
        raise AssertionError(f"not healthy in 10 s: {ran.out}")


@pytest.fixture
def user(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[User]:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TIEBREAK_CLUSTER", str(tmp_path / "c"))
    user = User(capfd)
    user.does(f"cluster init --base-port {free_ports()}")
    try:
        yield user
    finally:
        run_down(Launcher(ClusterFolder(tmp_path / "c")))


def test_a_day_at_the_terminal(user: User) -> None:
    assert {row["member"] for row in user.gets("up")} == {
        "dc-a", "dc-b", "tiebreaker", "gateway-dc-a", "gateway-dc-b",
    }  # fmt: skip
    report = user.waits_for_health()
    leader = report["leader"]

    user.does("asset add USD --scale 2")
    user.does("asset add AAPL --scale 0")
    user.does("instrument add AAPL --base AAPL --quote USD --tick 0.01 --lot 1 --taker-bps 10")
    for name in ("alice", "bob"):
        user.does(f"account open {name}")
    user.does("deposit alice USD 10000")
    user.does("deposit bob AAPL 100 --key bobs-shares")
    assert user.gets("deposit bob AAPL 100 --key bobs-shares")["replay"]
    assert user.gets("deposit bob AAPL 101 --key bobs-shares", code=1)["error"] == "key_reused"

    sold = user.gets("order place sell AAPL 50 --price 187.20 --account bob")
    assert (sold["status"], sold["leaves_qty"]) == ("new", "50")
    book = user.gets("book AAPL")
    assert (book["bids"], book["asks"]) == ([], [{"price": "187.2", "qty": "50", "orders": 1}])
    bought = user.gets("order place buy AAPL 10 --price 187.30 --account alice --key buy-1")
    assert (bought["status"], bought["filled_avg_price"], bought["fee"]) == ("filled", "187.2", "1.88")
    assert user.gets("commands show buy-1 --account alice")["id"] == bought["id"]
    assert user.gets(f"order show {bought['id']}")["client_order_id"] == "buy-1"
    balances = {b["asset"]: b for b in user.gets("account show alice")["balances"]}
    assert balances["USD"]["available"] == "8126.12"
    assert balances["AAPL"]["available"] == "10"
    (trade,) = user.gets("trades AAPL")["trades"]
    assert (trade["price"], trade["qty"], trade["taker_side"]) == ("187.2", "10", "buy")
    (own,) = user.gets("trades --account bob")["trades"]
    assert own["liquidity"] == "maker"
    rows = user.gets("ledger alice --asset USD")["ledger"]
    assert rows[0]["balance"] == "8126.12"
    assert {row["reason"] for row in rows} >= {"deposit", "trade", "fee"}

    smaller = user.gets(f"order replace {sold['id']} --qty 30 --account bob")
    assert (smaller["replaces"], smaller["leaves_qty"], smaller["kept_priority"]) == (sold["id"], "20", True)
    assert user.gets("order list --account bob")["orders"][0]["id"] == smaller["id"]
    user.does(f"order cancel {smaller['id']} --account bob")
    assert user.gets(f"order cancel {smaller['id']} --account bob", code=1)["error"] == "order_not_found"
    user.does("order place sell AAPL 5 --price 190 --account bob --key mine")
    assert user.gets("order replace --client-id mine --qty 4 --account bob --key mine-2")["leaves_qty"] == "4"
    assert user.gets("order show --client-id mine --account bob")["status"] == "replaced"
    assert user.gets("order cancel --client-id mine --account bob", code=1)["error"] == "order_not_found"
    assert user.gets("order cancel --client-id mine-2 --account bob")["status"] == "canceled"
    user.does("order cancel --account bob", code=2)
    user.does("order cancel 1 --client-id mine --account bob", code=2)
    user.does("order place sell AAPL 5 --price 190 --account bob")
    assert user.gets("order cancel-all --account bob")["count"] == 1

    assert user.gets("order place buy AAPL 1 --market --account alice", code=1)["error"] == "no_reference"
    user.does("order place sell AAPL 5 --price 187.50 --account bob")
    user.does("reference AAPL 187.25")
    assert user.gets("order place buy AAPL --market --budget 400 --account alice")["filled_qty"] == "2"
    user.does("instrument mode AAPL halted")
    assert user.gets("order place buy AAPL 1 --price 1 --account alice", code=1)["error"] == "instrument_halted"
    user.does("instrument mode AAPL trading")
    user.does("instrument fees AAPL --maker-bps 1 --taker-bps 5")
    user.does("instrument limits AAPL --qty-max 1000")
    user.does("instrument calendar AAPL --always")
    shown = user.gets("instrument show AAPL")
    assert (shown["maker_bps"], shown["limits"]["qty_max"]) == (1, "1000")

    held = user.gets("withdraw request alice USD 100")
    (listed,) = user.gets("withdraw list alice")["withdrawals"]
    assert (listed["id"], listed["amount"], listed["status"]) == (held["id"], "100", "pending")
    user.does(f"withdraw void {held['id']}")
    assert user.gets("withdraw list alice")["withdrawals"] == []
    held = user.gets("withdraw request alice USD 50")
    user.does(f"withdraw post {held['id']}")
    user.does("transfer alice bob USD 1.00")
    assert user.gets("deposit alice EUR 1", code=1)["error"] == "asset_not_found"

    # Leadership moves by request; asked for again, it stays there.
    other = next(name for name in ("dc-a", "dc-b") if name != leader)
    moved = user.gets(f"cluster transfer --to {other}")
    assert moved["leader"] == other
    assert user.gets(f"cluster transfer --to {other}") == moved
    assert user.does("cluster transfer").out == f"{leader} leads in term {moved['term'] + 1}\n"
    assert "is a witness" in user.does("cluster transfer --to tiebreaker", code=1).err
    assert "no member 'nobody'" in user.does("cluster transfer --to nobody", code=1).err

    # The leader crashes; the next command finds the other side by itself.
    user.does(f"down {leader} --kill")
    user.does("order place buy AAPL 1 --price 100 --account alice --timeout-ms 15000")
    assert user.gets("status", code=1)["leader"] not in ("", leader)
    user.does(f"up {leader}")
    after = user.waits_for_health()
    digests = {row["digest"] for row in after["members"] if row["view"]["role"] == "replica"}
    assert len(digests) == 1
    assert digests != {""}
    for kind in ("status", "book AAPL", "trades AAPL", "ledger alice", "order list --account alice --status all",
                 "account show alice", "instrument list", "instrument show AAPL", "asset list"):  # fmt: skip
        assert user.does(kind).out.strip(), kind

    began = time.monotonic()
    assert {row["ended"] for row in user.gets("down")} == {"stopped"}
    # The last leader has nobody to hand over to, and does not wait for half of drain_ms, which is 5 s.
    assert time.monotonic() - began < 4.5
    for name in ("dc-a", "dc-b"):
        assert user.gets(f"inspect {name}")["findings"] == []
