"""Reads of one pipeline are answered as of one order, also if the lane is lost between them."""

import pytest

from processes import cached
from stand_in import StandIn
from wire import Connection

pytestmark = pytest.mark.needs_proxy


@pytest.mark.parametrize("level", ["bounded", "causal", "linearizable"])
def test_a_read_that_has_its_answer_is_not_sent_again(lab, level):
    """HVALS has been answered, and its fields are asked about; LRANGE behind it has been answered too. Then both keys are written and
    the lane is lost. Before: HVALS was sent again, and showed a newer state than LRANGE (found by scripts/verify-hour)."""
    server = lab.server("valkey")
    stand_in = lab.stand_in(server.port)
    with server.connect() as direct:
        # with such a field anywhere, a reply of a whole hash is kept only if the fields of that hash live on
        direct.pipeline([("HSET", "other", "f", "v"), ("HPEXPIRE", "other", 3_600_000, "FIELDS", 1, "f"), ("HSET", "h", "f", "old")])
    proxy = lab.proxy(stand_in.port, settings={"audit_one_in": 0, "threads": 1})
    lost = []

    def answer(words, role):
        if words[0].upper() != b"HKEYS" or lost:
            return None
        lost.append(True)
        with server.connect() as direct:
            direct.pipeline([("HSET", "h", "f", "new"), ("RPUSH", "l", "new")])
        return StandIn.CLOSE

    with Connection(proxy.ports[level]) as conn:
        cached(conn, "GET", "warm")
        stand_in.answer = answer
        assert conn.pipeline([("HVALS", "h"), ("LRANGE", "l", 0, -1)]) == [[b"old"], []]
        assert lost, "the question was not asked: this shows nothing"
        assert conn.pipeline([("HVALS", "h"), ("LRANGE", "l", 0, -1)]) == [[b"new"], [b"new"]]
