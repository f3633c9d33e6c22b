"""The ground the other tests stand on: both servers are here, and new enough."""

import redis


def test_the_server_answers_and_knows_client_tracking(upstream_port):
    client = redis.Redis(port=upstream_port)
    client.set("k", "v")
    assert client.get("k") == b"v"
    version = client.info("server").get("valkey_version") or client.info("server")["redis_version"]
    assert int(version.split(".")[0]) >= 7
    assert client.execute_command("CLIENT", "TRACKINGINFO")
