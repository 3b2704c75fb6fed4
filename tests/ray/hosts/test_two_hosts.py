"""Channels between two hosts: one ingress replica and one worker on each, and another node on host b only."""

from __future__ import annotations

import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

pytestmark = pytest.mark.ray

BRIEFLY_S = 2
"""How long some steps may take."""

STEPS = {
    "who": {"method": "who"},
    "brief": {"method": "brief", "timeout": f"{BRIEFLY_S}s"},
    "hold": {"method": "hold"},
    "endpoint": {"method": "endpoint"},
    "array": {"method": "array"},
    "far": {"node": "far", "method": "who"},
    "far-briefly": {"node": "far", "method": "who", "timeout": f"{BRIEFLY_S}s"},
    "far-hold": {"node": "far", "method": "hold"},
}


class Load:
    """Clients of both ingress replicas, or of one, that ask one request after another."""

    def __init__(self, hosts, *ingresses, clients=2):
        self._hosts = hosts
        self._clients = [ingress for ingress in ingresses for _ in range(clients)]
        self._stop = threading.Event()
        self.answers = []
        self.slowest = 0.0

    def _ask(self, ingress):
        while not self._stop.is_set():
            start = time.monotonic()
            self.answers.append(self._hosts.ask(ingress, "brief"))
            self.slowest = max(self.slowest, time.monotonic() - start)

    def __enter__(self):
        self._pool = ThreadPoolExecutor(len(self._clients))
        self._asking = [self._pool.submit(self._ask, ingress) for ingress in self._clients]
        return self

    def __exit__(self, *error):
        self._stop.set()
        self._pool.shutdown()
        if error[0] is None:
            for client in self._asking:
                client.result()

    def more(self, count=40):
        """Wait until so many more were answered; their answers."""
        before = len(self.answers)
        self._hosts.serve.wait_for(f"{count} more answers", lambda: len(self.answers) >= before + count)
        return self.answers[before:]

    @property
    def failed(self):
        return [answer for answer in self.answers if answer.status != 200]


@pytest.fixture(scope="module")
def hosts(new_hosts):
    hosts = new_hosts()
    on_b = {"num_cpus": 0.01, "resources": {"b": 0.01}}
    hosts.deploy(STEPS, hosts.serve.node("far", "host_models:Worker", path=hosts.code, ray_actor_options=on_b))
    return hosts


def workers(hosts):
    """The worker on each host, as its process there."""

    def found():
        answered = {tuple(hosts.ask(hosts.a, "who").json) for _ in range(8)}
        return len(answered) == len(by_host := dict(answered)) == 2 and by_host

    return hosts.serve.wait_for("the workers on both hosts", found)


def test_each_ingress_calls_the_nodes_of_both_hosts_over_channels(hosts):
    for ingress in hosts.both:
        with hosts.counted(ingress, 41) as otherwise:
            assert hosts.ask(ingress, "far").json[0] == "b"
            answers = Counter(hosts.ask(ingress, "who").json[0] for _ in range(40))
        assert otherwise == {}
        assert answers.keys() == {"a", "b"}


def test_the_socket_on_the_same_host_and_tcp_to_the_other(hosts):
    """As the kernel tells of the connections to replicas: one from the ingress of each host."""
    endpoints = hosts.endpoints()
    for host, other in (hosts.both, hosts.both[::-1]):
        endpoint = endpoints[host.address]
        assert Path(endpoint.path).is_socket()  # as the other host sees it too
        assert host.unix_connections(endpoint.path) == 1
        assert host.tcp_peers(endpoint.port) == [other.address]


@pytest.mark.parametrize("size", [1 << 20, 8 << 20, 64 << 20], ids=["1MiB", "8MiB", "64MiB"])
def test_large_values_between_all_pairs_of_hosts(hosts, size):
    """Through shared memory on one host, and through the connection between two."""
    for ingress in hosts.both:
        with hosts.counted(ingress, 2 * 4) as otherwise:
            hosts.check_arrays(ingress, size)
        assert otherwise == {}


def test_a_killed_replica_on_the_other_host_costs_no_request(hosts):
    before = workers(hosts)
    with Load(hosts, *hosts.both) as load:
        load.more()
        hosts.b.kill(before["b"])
        after = hosts.serve.wait_for(
            "another worker in its place", lambda: (now := workers(hosts))["b"] != before["b"] and now, 120
        )
        load.more()
    assert load.failed == []
    assert after["a"] == before["a"]
    hosts.warm_up()


def test_a_short_cut_costs_calls_their_time_and_nothing_else(hosts, tmp_path):
    """Calls end by their deadline with an error, or wait for the link if they may. Connections outlive it."""
    before = workers(hosts)
    with held(hosts, "far-hold", tmp_path, 1) as (waiting,), Load(hosts, hosts.a) as load:
        load.more()
        with hosts.apart():
            (tmp_path / "go").touch()
            start = time.monotonic()
            late = hosts.ask(hosts.a, "far-briefly")
            took = time.monotonic() - start
            meanwhile = load.more(20)
            assert not waiting.done()
        assert waiting.result().status == 200
        hosts.serve.wait_for("answers from the other host", lambda: "b" in {a.json[0] for a in load.more(20)})
    assert (late.status, late.json["error"]["code"], late.json["error"]["node"]) == (504, "Timeout", "far")
    assert BRIEFLY_S - 1 <= took < BRIEFLY_S + 5
    assert {answer.json["error"]["code"] for answer in load.failed} <= {"Timeout"}
    assert any(answer.status == 200 for answer in meanwhile)  # who does not answer is asked no more
    assert load.slowest < BRIEFLY_S + 5
    assert workers(hosts) == before
    hosts.warm_up()


def test_calls_on_a_lost_host_are_made_again_on_another(hosts, tmp_path):
    """The kernel notices after 25 s, long before Ray gives the other host up."""
    before = workers(hosts)
    with held(hosts, "hold", tmp_path, 6) as calls:
        away = begun(tmp_path, "b")
        assert away
        with hosts.apart():
            hosts.serve.wait_for("the lost calls to begin again", lambda: away <= begun(tmp_path, "a"))
            (tmp_path / "go").touch()
            answers = [call.result() for call in calls]
    assert [answer.json for answer in answers] == [["a", before["a"]]] * 6
    hosts.warm_up()
    assert workers(hosts) == before


@contextmanager
def held(hosts, do, folder, count):
    """Calls of the ingress on host a that have begun; they end with a file ``go``, at the latest at the end."""
    with ThreadPoolExecutor(count) as pool:
        try:
            calls = [
                pool.submit(hosts.ask, hosts.a, do, {"folder": str(folder), "key": f"call-{number}"})
                for number in range(count)
            ]
            hosts.serve.wait_for("the calls to begin", lambda: len(begun(folder, "a") | begun(folder, "b")) == count)
            yield calls
        finally:
            (folder / "go").touch()


def begun(folder, host):
    """The calls that have begun on a host."""
    return {path.name.split(".")[0] for path in folder.glob(f"*.{host}.*")}
