"""What is measured is what it says: writes that share syncs, and a wiped site that is filled."""

from pathlib import Path

from gateway.prefs.measure import measure_fill, measure_reads, measure_writes


async def test_a_wiped_site_is_filled_and_writes_share_syncs(tmp_path: Path) -> None:
    assert (await measure_fill(300, tmp_path)).users == 300
    assert (await measure_writes(50, 0.3, tmp_path)).writes_per_sync > 10


async def test_a_read_is_of_memory_of_the_store_and_of_a_cache(tmp_path: Path) -> None:
    found = await measure_reads(300, tmp_path)
    assert found.users == 300
    assert 0 < found.memory_us[0] < found.store_us[0], "what was read is not read again"
    assert 0 < found.cache_us[0] <= found.cache_us[1]
