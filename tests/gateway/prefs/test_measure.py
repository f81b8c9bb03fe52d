"""What is measured is what it says: a cut that cuts, nothing lost, and a wiped site that is filled."""

import pytest

from gateway.prefs import measure
from gateway.prefs.measure import Side, measure_cut, measure_fill, measure_writes


async def test_a_cut_loses_nothing_and_heals_within_5_s() -> None:
    found = await measure_cut(2.5, writes_per_s=60)
    assert (found.lost, found.preferences > 5, found.alerts > 5) == (0, True, True)
    assert 0 <= found.heal_ms < 5_000


async def test_a_wiped_site_is_filled_and_writes_share_syncs() -> None:
    assert (await measure_fill(300)).users == 300
    assert (await measure_writes(50, 0.3)).writes_per_sync > 10


async def test_a_cut_that_does_not_cut_is_no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure.Two, "equal", lambda _two: True)
    with pytest.raises(RuntimeError, match="not cut apart"):
        await measure_cut(0.2)


async def test_what_is_lost_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    real = measure._missing

    def forgets(side: Side, names: dict[str, str], alerts: set[tuple[str, str]]) -> int:
        return real(side, names | {"user-x": "Bull x"}, alerts | {("user-x", "x")})

    monkeypatch.setattr(measure, "_missing", forgets)
    assert (await measure_cut(0.3, writes_per_s=60)).lost == 4
