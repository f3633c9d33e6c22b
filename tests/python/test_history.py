"""The judge itself: every kind of violation is found, and nothing right is called wrong."""

import pytest

from history import PRESENT, TIME, Judge, Read, Rules, Write


def write(version, start, end, key="k", route="a", gone=False, writer="w"):
    return Write(key, version, None if gone else version, start, end, route, writer)


def read(value, start, end, key="k", session="s", route="b", after=0):
    return Read(key, value, start, end, session, route, "GET", after)


def reasons(writes, reads, level="linearizable", max_staleness=1.0):
    judge = Judge(writes, reads, Rules(level, max_staleness))
    return [reason for violation in judge.violations() for reason in violation.reasons]


TWO_WRITES = [write(1, 0, 1), write(2, 10, 11)]


def test_the_latest_value_is_right_at_every_level():
    for level in ("bounded", "causal", "linearizable"):
        assert reasons(TWO_WRITES, [read(1, 2, 3), read(2, 12, 13)], level) == []


def test_during_a_write_old_and_new_are_right():
    assert reasons(TWO_WRITES, [read(1, 10.1, 10.2, session="x"), read(2, 10.1, 10.2, session="y")]) == []


def test_stale_is_found_at_once_when_linearizable():
    assert reasons(TWO_WRITES, [read(1, 11.1, 11.2)]) == ["stale"]


def test_bounded_allows_its_bound_and_no_more():
    assert reasons(TWO_WRITES, [read(1, 11.9, 12)], "bounded") == []
    assert reasons(TWO_WRITES, [read(1, 12.1, 12.2)], "bounded") == ["stale"]


def test_own_writes_of_the_same_proxy_are_never_missed():
    assert reasons(TWO_WRITES, [read(1, 11.1, 11.2, route="a")], "bounded") == ["own write"]


def test_a_read_behind_a_write_in_one_pipeline():
    assert reasons(TWO_WRITES, [read(1, 10.5, 11.5, after=2)], "bounded") == ["pipeline"]


def test_a_connection_goes_back_in_time():
    assert reasons(TWO_WRITES, [read(2, 11.1, 11.2), read(1, 11.3, 11.4)], "bounded") == ["back in time"]


def test_two_connections_may_disagree_within_the_bound_but_not_when_linearizable():
    reads = [read(2, 10.1, 10.2, session="x"), read(1, 10.3, 10.4, session="y")]
    assert reasons(TWO_WRITES, reads, "causal") == []
    assert reasons(TWO_WRITES, reads) == ["read order"]


def test_causal_across_keys():
    writes = [write(1, 0, 1, "x"), write(2, 2, 3, "x"), write(1, 4, 5, "y")]
    reads = [read(1, 5.1, 5.2, "y"), read(1, 5.3, 5.4, "x")]
    assert reasons(writes, reads, "causal", 60) == ["causal"]
    assert reasons(writes, reads, "bounded", 60) == []


def test_causal_needs_the_later_write_to_be_seen_before():
    writes = [write(1, 0, 1, "x"), write(2, 2, 3, "x"), write(1, 4, 5, "y")]
    assert reasons(writes, [read(1, 5.1, 5.3, "y"), read(1, 5.2, 5.4, "x")], "causal", 60) == []


def test_a_deleted_key_that_is_still_seen():
    writes = [write(1, 0, 1), write(2, 2, 3, gone=True)]
    assert reasons(writes, [read(1, 4, 5)]) == ["stale"]
    assert reasons(writes, [read(PRESENT, 4, 5)]) == ["stale"]
    assert reasons(writes, [read(None, 4, 5)]) == []


def test_a_nil_that_is_too_old():
    writes = [write(1, 0, 1), write(2, 2, 3, gone=True), write(3, 4, 5)]
    assert reasons(writes, [read(None, 6, 7)]) == ["stale"]


def test_a_key_past_its_ttl_is_wrong_at_every_level():
    writes = [write(1, 0, 1), write(2, 9, 10, route=TIME, gone=True)]
    assert reasons(writes, [read(1, 10.1, 10.2)], "bounded") == ["expired"]


def test_a_value_from_nowhere_from_the_future_or_torn():
    assert reasons(TWO_WRITES, [read(7, 12, 13)]) == ["unknown"]
    assert reasons(TWO_WRITES, [read(2, 8, 9)]) == ["unknown"]
    assert reasons(TWO_WRITES, [read(("torn", 1, 2), 12, 13)]) == ["torn"]


def test_a_write_without_an_ack_may_or_may_not_have_happened():
    writes = [write(1, 0, 1), write(2, 2, None), write(3, 4, 5)]
    assert reasons(writes[:2], [read(1, 3, 4), read(2, 5, 6)]) == []
    assert reasons(writes, [read(2, 6, 7), read(3, 8, 9)]) == []
    assert reasons(writes, [read(1, 6, 7)]) == ["stale"]


@pytest.mark.parametrize("level", ["bounded", "causal", "linearizable"])
def test_nil_before_the_first_write(level):
    assert reasons(TWO_WRITES, [read(None, -2, -1)], level) == []
