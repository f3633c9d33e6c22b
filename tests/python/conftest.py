"""Fixtures: servers, proxies, relays. Every proxy's log is shown on failure, and a panic in it is a failure."""

import os
import time
from pathlib import Path

import pytest

from processes import BARE, Passage, Proxy, Server, proxy_binary
from relay import Relay
from stand_in import StandIn

SEED = int(os.environ.get("NEARSIDE_SEED") or time.time_ns() % 1_000_000)
SHOWN_LOG_LINES = 60


class Lab:
    """Starts what a test needs and ends all of it."""

    def __init__(self, folder):
        self.folder = folder
        self.servers = []
        self.proxies = []
        self.relays = []

    def server(self, kind="redis", **options):
        self.servers.append(Server(self.folder, kind, **options))
        return self.servers[-1]

    def relay(self, port):
        self.relays.append(Relay(port))
        return self.relays[-1]

    def stand_in(self, port):
        self.relays.append(StandIn(port))
        return self.relays[-1]

    def proxy(self, upstream_port, name="a", settings=(), **options):
        # a test's few clients are dealt to all threads, as the many of a real proxy are
        settings = {"clients_together": 1, **dict(settings)}
        proxy = Passage(upstream_port, name) if BARE else Proxy(self.folder, upstream_port, name, settings, **options)
        self.proxies.append(proxy)
        return proxy

    def site(self, kind="redis", server_options=(), relayed=False, **proxy_options):
        """One server, two proxies over it, with or without a relay between them and it."""
        return Site(self, kind, server_options, relayed, proxy_options)

    def close(self):
        for part in (*self.proxies, *self.relays, *self.servers):
            part.kill()


class Site:
    """One server and proxies A and B over it."""

    def __init__(self, lab, kind, server_options, relayed, proxy_options):
        self.server = lab.server(kind, options=server_options)
        self.relay = lab.relay(self.server.port) if relayed else None
        upstream = self.relay.port if relayed else self.server.port
        self.a = lab.proxy(upstream, "a", **proxy_options)
        self.b = lab.proxy(upstream, "b", **proxy_options)

    def healthy(self):
        return all(part.alive() for part in (self.server, self.a, self.b))


_labs = []


def _new_lab(tmp_path_factory):
    lab = Lab(tmp_path_factory.mktemp("lab"))
    _labs.append(lab)
    return lab


def _close(lab):
    lab.close()
    _labs.remove(lab)


@pytest.fixture
def lab(tmp_path_factory):
    """A lab of this test's own."""
    lab = _new_lab(tmp_path_factory)
    yield lab
    _close(lab)


@pytest.fixture(scope="session")
def _shared_sites(tmp_path_factory):
    lab = _new_lab(tmp_path_factory)
    yield lab, {}
    _close(lab)


@pytest.fixture(params=["redis", "valkey"])
def site(request, _shared_sites):
    """A server and two proxies that tests share, emptied; started anew if a test broke them."""
    return _healthy_site(_shared_sites, request.param)


@pytest.fixture
def redis_site(_shared_sites):
    """The shared site over redis-server only."""
    return _healthy_site(_shared_sites, "redis")


def _healthy_site(shared, kind):
    lab, sites = shared
    if kind not in sites or not sites[kind].healthy():
        # Tests count what reaches the server: the auditor's own reads would be among it.
        sites[kind] = lab.site(kind, settings={"audit_one_in": 0})
    sites[kind].server.call("FLUSHALL")
    return sites[kind]


@pytest.fixture
def seed():
    return SEED


@pytest.fixture(autouse=True)
def _no_panic():
    before = {proxy: len(proxy.panics()) for proxy in _all_proxies()}
    yield
    for proxy in _all_proxies():
        new = proxy.panics()[before.get(proxy, 0):]
        assert not new, f"proxy {proxy.name} panicked: {new}"


def _all_proxies():
    return [proxy for lab in _labs for proxy in lab.proxies]


def pytest_report_header():
    target = "bare server" if BARE else Path(proxy_binary()).name
    return f"nearside: against {target}, NEARSIDE_SEED={SEED}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.failed:
        report.sections += [(f"log of proxy {proxy.name}", _tail(proxy.read_log())) for proxy in _all_proxies()]
        report.sections.append(("seed", f"NEARSIDE_SEED={SEED}"))
    return report


def _tail(text):
    return "\n".join(text.splitlines()[-SHOWN_LOG_LINES:])


def pytest_configure(config):
    config.addinivalue_line("markers", "needs_proxy: skipped with NEARSIDE_BARE=1")
    config.addinivalue_line("markers", "differs(reason): known to differ through the proxy, and expected to fail there")


def pytest_collection_modifyitems(items):
    if BARE:
        skip = pytest.mark.skip(reason="about the proxy itself; NEARSIDE_BARE=1 has none")
        for item in items:
            if item.get_closest_marker("needs_proxy"):
                item.add_marker(skip)
