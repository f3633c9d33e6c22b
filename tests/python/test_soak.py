"""scripts/soak in small."""

import pytest

from soak import soak

pytestmark = pytest.mark.needs_proxy


def test_nothing_is_left_of_clients_that_come_and_go(tmp_path, seed):
    said = []
    left = soak(tmp_path, seconds=15, seed=seed, report=said.append)
    assert not left, "\n".join(said)
