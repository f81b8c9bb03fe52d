"""Fixtures of the cluster's tests."""

from collections.abc import Iterator

import pytest

from tests.cluster.lab import Clock, virtual_time


@pytest.fixture
def clock() -> Iterator[Clock]:
    with virtual_time() as clock:
        yield clock
