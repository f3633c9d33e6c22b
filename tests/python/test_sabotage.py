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
    violations = violations_of(lab, slow, level, seed, {"NEARSIDE_BREAK": rule})
    print(f"without {rule}, {level}: {summary(violations, shown=3)}")
    assert violations, f"a proxy without {rule} passed as {level}"


@pytest.mark.parametrize("slow", ["link", "lane"])
def test_the_same_binary_unbroken_passes(lab, slow, seed):
    violations = violations_of(lab, slow, "linearizable", seed, {})
    assert not violations, summary(violations)
