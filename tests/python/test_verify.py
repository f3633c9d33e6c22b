"""`nearside verify` passes what keeps the promises, and finds out what does not."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from certificates import Authority
from processes import LEVELS, LONG, Child, accepts, free_port, proxy_binary, wait_until
from test_sabotage import BROKEN, DELAY, SABOTAGE_BIN

pytestmark = pytest.mark.needs_proxy

SECONDS = 15 if LONG else 3
SETTINGS = {"max_staleness": "300ms", "heartbeat": "50ms"}
PASSED, FAILED, NOTHING_TO_SAY = 0, 1, 2
ALWAYS_JUDGED = ("values", "age", "own writes", "no way back", "expiry", "linearizable")
JUDGED = {"bounded": ALWAYS_JUDGED, "causal": (*ALWAYS_JUDGED, "causal"), "linearizable": (*ALWAYS_JUDGED, "causal", "order")}


def run_verify(*args):
    command = [proxy_binary(), "verify", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def address(port):
    return f"127.0.0.1:{port}"


def verify(upstream, proxy_ports, *args, seconds=SECONDS):
    """The exit code and the report."""
    proxies = [word for port in proxy_ports for word in ("--proxy", address(port))]
    done = run_verify(*proxies, "--upstream", address(upstream), "--max-staleness", "300ms", "--seconds", seconds, "--json", *args)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def told(report):
    """The report's violations, for a failure's message."""
    return json.dumps([report["verdict"], report["doubts"], report["seed"], report["violations"][:2]], indent=1)


def checked(report):
    return {promise["name"]: promise["checked"] for promise in report["promises"]}


def broken(report):
    return {promise["name"] for promise in report["promises"] if promise["broken"]}


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", ["redis", "valkey"])
def test_nearside_passes(lab, kind, level, seed):
    """At each level, with links and lanes cut on the way; every promise of the level was put to the test."""
    site = lab.site(kind, settings=SETTINGS)
    code, report = verify(site.server.port, [site.a.port, site.b.port], "--level", level, "--seed", seed, "--cut-links")
    assert code == PASSED, told(report)
    counts = checked(report)
    assert all(counts[name] > 0 for name in JUDGED[level]), counts
    assert all(proxy["level"] == level and proxy["hits"] > 100 for proxy in report["proxies"]), report["proxies"]
    assert report["cut"] > 0 and report["undecided"] == 0
    assert report["seed"] == seed
    assert ("MULTI HSET HSET HPEXPIRE" in report["commands"]) == (kind == "valkey")
    assert site.server.call("DBSIZE") == 0, "keys were left behind"


def test_listeners_of_different_levels_are_each_held_to_their_own(lab):
    site = lab.site("redis", settings=SETTINGS)
    code, report = verify(site.server.port, [site.a.ports["causal"], site.b.ports["linearizable"], site.b.port])
    assert code == PASSED, told(report)
    assert [proxy["level"] for proxy in report["proxies"]] == ["causal", "linearizable", "bounded"]
    assert checked(report)["causal"] > checked(report)["order"] > 0


@pytest.fixture
def ttl_cache(lab):
    """A server behind a cache that keeps replies for a second, and a real proxy beside it."""
    site = lab.site("redis", settings=SETTINGS)
    port = free_port()
    script = Path(__file__).with_name("ttl_cache.py")
    cache = Child([sys.executable, script, port, site.server.port, 1], lab.folder / "ttl_cache.log")
    wait_until(lambda: accepts(port), "the cache listens")
    yield site, port
    cache.kill()


@pytest.mark.parametrize("level", LEVELS)
def test_a_cache_with_a_ttl_fails(ttl_cache, level):
    site, port = ttl_cache
    code, report = verify(site.server.port, [port, site.a.port], "--level", level)
    assert code == FAILED, told(report)
    assert {"age", "own writes", "no way back", "expiry"} <= broken(report)
    assert ("linearizable" in broken(report)) == (level == "linearizable")
    # It is told which proxy: each fragment has a read through it, nearly always the last. (A key's absence, read too late, may
    # pass for a later one; then the next to read the key is called too old, by what the cache has shown.)
    fragments = [violation["fragment"] for violation in report["violations"]]
    assert fragments and all(any(line["way"] == address(port) for line in fragment) for fragment in fragments), told(report)
    last = [line["way"] for fragment in fragments for line in fragment if "the read" in line["part"]]
    assert last.count(address(port)) > 0.7 * len(last), told(report)


@pytest.mark.skipif(not SABOTAGE_BIN, reason="NEARSIDE_SABOTAGE_BIN is not set")
@pytest.mark.parametrize(("rule", "slow", "level"), BROKEN)
def test_a_broken_rule_fails(lab, rule, slow, level, seed):
    site = lab.site("redis", relayed=True, settings=SETTINGS, binary=SABOTAGE_BIN, env={"NEARSIDE_BREAK": rule})
    site.relay.delay(slow, DELAY)
    code, report = verify(site.server.port, [site.a.port, site.b.port], "--level", level, "--seed", seed)
    assert code == FAILED, told(report)


@pytest.mark.skipif(not SABOTAGE_BIN, reason="NEARSIDE_SABOTAGE_BIN is not set")
@pytest.mark.parametrize("slow", ["link", "lane"])
def test_the_same_binary_unbroken_passes(lab, slow, seed):
    site = lab.site("redis", relayed=True, settings=SETTINGS, binary=SABOTAGE_BIN)
    site.relay.delay(slow, DELAY)
    code, report = verify(site.server.port, [site.a.port, site.b.port], "--level", "linearizable", "--seed", seed)
    assert code == PASSED, told(report)


def test_erasures_by_others_are_believed_only_if_they_are_told(lab, tmp_path):
    site = lab.site("redis", settings=SETTINGS)
    events = tmp_path / "events"
    events.write_text("")
    verifying = start_verify(site, "--seconds", SECONDS, "--events", events)
    for _ in range(4):
        wait_until(lambda: site.server.call("DBSIZE") > 10, "keys to erase")
        erase(site.server, events)
    code, report = finished(verifying)
    assert code == PASSED, told(report)
    assert report["erasures"] == 4

    verifying = start_verify(site, "--seconds", SECONDS)
    wait_until(lambda: site.server.call("DBSIZE") > 10, "keys to erase")
    site.server.call("FLUSHALL")
    code, report = finished(verifying)
    assert code == FAILED, told(report)
    # By whatever is known of a key that is gone: as a rule somebody has seen it, or its last write was acknowledged.
    assert broken(report) & {"no way back", "values", "own writes", "age"}, told(report)


def start_verify(site, *args):
    command = [proxy_binary(), "verify", "--proxy", address(site.a.port), "--proxy", address(site.b.port), "--upstream",
               address(site.server.port), "--max-staleness", "300ms", "--json", *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def finished(verifying):
    told_all, _ = verifying.communicate(timeout=60)
    return verifying.returncode, json.loads(told_all)


def erase(server, events):
    """FLUSHALL, announced and then completed."""
    start = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    with events.open("a", buffering=1) as file:
        file.write(f"erase {start} -\n")
        server.call("FLUSHALL")
        file.write(f"erase {start} {time.clock_gettime_ns(time.CLOCK_BOOTTIME)}\n")


def test_a_deployment_that_cannot_be_verified_says_why(lab):
    server, other = lab.server("redis"), lab.server("redis")
    proxy = lab.proxy(server.port, settings=SETTINGS)
    nobody = address(free_port())
    cases = [
        ((address(proxy.port), nobody), f"{nobody}: "),
        ((nobody, address(server.port)), f"{nobody}: "),
        ((address(proxy.port), address(other.port)), "does not show what is written at the upstream"),
        ((address(proxy.port), "redis://"), "redis://: "),
    ]
    for (through, upstream), words in cases:
        done = run_verify("--proxy", through, "--upstream", upstream, "--seconds", 1)
        assert done.returncode == NOTHING_TO_SAY and words in done.stderr, (through, upstream, done)


def test_a_proxy_that_answers_nothing_from_its_cache_proves_nothing(lab):
    """It caches nothing, keeps every promise, and does not pass."""
    server = lab.server("redis")
    proxy = lab.proxy(server.port, settings={**SETTINGS, "invalidation": "off"})
    code, report = verify(server.port, [proxy.port], seconds=1)
    assert code == NOTHING_TO_SAY and report["verdict"] == "inconclusive", told(report)
    assert "answered nothing from its cache" in report["doubts"][0]


def test_over_tls_and_a_unix_socket(lab, tmp_path):
    ours = Authority(tmp_path)
    cert, key = ours.issue("server")
    secure, local = f"127.0.0.1:{free_port()}", tmp_path / "nearside.sock"
    doors = [{"address": secure, "tls_cert": cert, "tls_key": key}, {"address": f"unix:{local}"}]
    server = lab.server("redis")
    lab.proxy(server.port, settings=SETTINGS, doors=doors)
    done = run_verify("--proxy", f"rediss://{secure}", "--proxy", f"unix://{local}", "--upstream", f"redis://{address(server.port)}/3",
                      "--tls-ca", ours.ca, "--seconds", 3)
    # the proxy's sessions begin in another database
    assert done.returncode == NOTHING_TO_SAY and "does not show" in done.stderr, done
    done = run_verify("--proxy", f"rediss://{secure}/3", "--proxy", f"unix://{local}?db=3", "--upstream", f"redis://{address(server.port)}/3",
                      "--tls-ca", ours.ca, "--seconds", 3)
    assert done.returncode == PASSED, done


def test_an_interrupt_ends_it_in_order(lab):
    """What was driven until then is judged, and the keys are removed."""
    site = lab.site("redis", settings=SETTINGS)
    verifying = start_verify(site, "--seconds", 60)
    wait_until(lambda: min(proxy.stats()["hits"] for proxy in (site.a, site.b)) > 10, "both caches have answered", timeout=25)
    verifying.send_signal(signal.SIGINT)
    code, report = finished(verifying)
    assert code == PASSED, told(report)
    assert report["seconds"] < 30 and report["reads"] > 0
    assert site.server.call("DBSIZE") == 0


def test_the_report_reads_like_a_certificate(lab, tmp_path):
    site = lab.site("redis", settings=SETTINGS)
    file = tmp_path / "report"
    done = run_verify("--proxy", address(site.a.port), "--upstream", address(site.server.port), "--seconds", 3, "--report", file)
    assert done.returncode == PASSED, done.stdout
    assert file.read_text() == done.stdout
    words = ["seed", address(site.server.port), "Redis 7", address(site.a.port), "bounded", "hits", "12 clients", "(removed)",
             "through proxies", "own writes", "staleness", "p99", "worst", "PASSED: no promise was broken."]
    missing = [word for word in words if word not in done.stdout]
    assert not missing, done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 120
