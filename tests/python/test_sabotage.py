"""A build that breaks one of the three rules must be found out: otherwise the coherence tests prove nothing.

Needs a binary built with the cargo feature `sabotage`, named by NEARSIDE_SABOTAGE_BIN.
"""

import os

import pytest

from history import summary
from test_coherence import SETTINGS, hot_scenario, violations_in
from workload import run

SABOTAGE_BIN = os.environ.get("NEARSIDE_SABOTAGE_BIN")
SECONDS = 4
#: On a machine that is busy with much else, little may happen in that time.
ROUNDS = 5
DELAY = 0.005  # races become wide

pytestmark = [pytest.mark.needs_proxy, pytest.mark.skipif(not SABOTAGE_BIN, reason="NEARSIDE_SABOTAGE_BIN is not set")]

# A token matters when an invalidation overtakes the reply of a fill; the other two when it comes late.
BROKEN = [
    ("tokens", "lane", "bounded"),
    ("tokens", "lane", "linearizable"),
    ("drop", "link", "bounded"),
    ("barrier", "link", "bounded"),
    ("barrier", "link", "causal"),
    ("barrier", "link", "linearizable"),
]


def violations_of(lab, slow, level, seed, env):
    site = lab.site("redis", relayed=True, settings=SETTINGS, binary=SABOTAGE_BIN, env=env)
    site.relay.delay(slow, DELAY)
    return violations_in(run(hot_scenario(site, level, seed, SECONDS)), level)


@pytest.mark.parametrize(("rule", "slow", "level"), BROKEN)
def test_a_broken_rule_is_found_out(lab, rule, slow, level, seed):
    for round_ in range(ROUNDS):
        violations = violations_of(lab, slow, level, seed + round_, {"NEARSIDE_BREAK": rule})
        print(f"without {rule}, {level}: {summary(violations, shown=3)}")
        if violations:
            return
    pytest.fail(f"a proxy without {rule} passed as {level}, {ROUNDS} times")


@pytest.mark.parametrize("slow", ["link", "lane"])
def test_the_same_binary_unbroken_passes(lab, slow, seed):
    violations = violations_of(lab, slow, "linearizable", seed, {})
    assert not violations, summary(violations)
