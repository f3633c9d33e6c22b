"""scripts/adversary in small."""

import pytest

from adversary import ATTACKS, attacked, mixture

pytestmark = pytest.mark.needs_proxy


@pytest.mark.parametrize("kind", ["redis", "valkey"])
@pytest.mark.parametrize("row", ATTACKS, ids=lambda row: row[0].__name__)
def test_an_attack_costs_no_more_than_its_bound(row, kind, tmp_path):
    attack, _, count, bounds, with_password = row
    found = attacked(tmp_path, kind, attack, count, bounds, with_password, timed=False)
    assert not found.beyond, str(found)


def test_nothing_is_left_of_all_attacks_at_once(tmp_path, seed):
    said = []
    assert not mixture(tmp_path, "redis", seconds=10, seed=seed, report=said.append), "\n".join(said)
