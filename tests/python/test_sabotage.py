"""A build that breaks one of the three rules must be found out: otherwise the coherence tests prove nothing.

Needs a binary built with the cargo feature `sabotage`, named by NEARSIDE_SABOTAGE_BIN.
"""

import os

import pytest

from history import summary
from test_coherence import SETTINGS, scenario_for, violations_in
from workload import run

SABOTAGE_BIN = os.environ.get("NEARSIDE_SABOTAGE_BIN")
SECONDS = 4
LINK_DELAY = 0.005  # as when the prototype's controls were measured: races become wide

pytestmark = [pytest.mark.needs_proxy, pytest.mark.skipif(not SABOTAGE_BIN, reason="NEARSIDE_SABOTAGE_BIN is not set")]

BROKEN = [
    ("tokens", "bounded"),
    ("tokens", "linearizable"),
    ("drop", "bounded"),
    ("barrier", "bounded"),
    ("barrier", "linearizable"),
]


def violations_of(lab, level, seed, env):
    site = lab.site("redis", relayed=True, settings=SETTINGS, binary=SABOTAGE_BIN, env=env)
    site.relay.delay("link", LINK_DELAY)
    return violations_in(run(scenario_for(site, level, seed, seconds=SECONDS)), level)


@pytest.mark.parametrize(("rule", "level"), BROKEN)
def test_a_broken_rule_is_found_out(lab, rule, level, seed):
    violations = violations_of(lab, level, seed, {"NEARSIDE_BREAK": rule})
    print(f"without {rule}, {level}: {summary(violations, shown=3)}")
    assert violations, f"a proxy without {rule} passed as {level}"


def test_the_same_binary_unbroken_passes(lab, seed):
    violations = violations_of(lab, "linearizable", seed, {})
    assert not violations, summary(violations)
