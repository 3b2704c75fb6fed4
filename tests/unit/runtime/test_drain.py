"""When a worker's pod waits before it ends, and when it does not."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from servepipe.runtime import drain
from servepipe.runtime.drain import Head, Node, Process

STARTER = Process(7, 1, ("/usr/bin/python", "/usr/local/bin/ray", "start", "--address=head:6379", "--block"))
RAYLET = Process(20, 7, ("/ray/raylet", "--node_id=ab12", "--gcs-address=10.0.0.1:6379", "--x"))
REPLICA = Process(30, 20, ("ray::ServeReplica:m1--r1:node",))
PROXY = Process(31, 20, ("ray::HAProxyManager",))
SHELL = Process(1, 0, ("bash", "-c", "ulimit -n 65536; ray start --address=head:6379 --block"))
BASE = [SHELL, STARTER, RAYLET]


class FakeGcs:
    """A head, and the clock; from ``until`` on nobody listens."""

    def __init__(self, refuses: str = "", until: float = 1e9) -> None:
        self.now, self.drained = 1000.0, []
        self._refuses, self._until = refuses, until

    def drain(self, node_id: str, deadline: float, message: str) -> str:
        self.drained.append((node_id, deadline))
        return self._refuses

    def there(self) -> bool:
        return self.now < self._until

    def wait(self, seconds: float) -> None:
        self.now += seconds


def run(gcs: FakeGcs, look: Callable[[float], list[Process]], *, proxy: bool = False) -> tuple[str, float]:
    """Why it ended, and after how many seconds."""
    node = Node.among(BASE)
    assert node is not None
    why = drain.drain(
        node,
        gcs,
        lambda: look(gcs.now - 1000),
        grace_s=600,
        proxy=proxy,
        clock=lambda: gcs.now,
        wait=gcs.wait,
        say=lambda _: None,
    )
    return why, gcs.now - 1000


def test_the_node_is_found_by_its_raylet() -> None:
    assert Node.among(BASE) == Node(RAYLET, "ab12", "10.0.0.1:6379")
    assert Node.among([SHELL, Process(9, 1, ())]) is None


def test_it_waits_until_replicas_have_moved() -> None:
    gcs = FakeGcs()
    why, took = run(gcs, lambda now: [*BASE, PROXY, REPLICA] if now < 42 else [*BASE, PROXY])
    assert why == "all replicas have moved"
    assert 42 <= took < 43
    assert gcs.drained == [("ab12", 1000 + 600 - drain._MARGIN_S)]


def test_where_callers_are_connected_the_proxy_counts() -> None:
    def look(now: float) -> list[Process]:
        return [*BASE, *([REPLICA] if now < 10 else []), *([PROXY] if now < 35 else [])]

    why, took = run(FakeGcs(), look, proxy=True)
    assert why == "all replicas have moved"
    assert 35 <= took < 36


@pytest.mark.parametrize("beside", [[], [PROXY], [Process(99, 98, REPLICA.command)]])
def test_it_does_not_even_ask_where_no_replica_is(beside: list[Process]) -> None:
    gcs = FakeGcs()
    assert run(gcs, lambda _: [*BASE, *beside]) == ("no replica is here", 0)
    assert gcs.drained == []


def test_nobody_is_asked_where_nobody_listens() -> None:
    gcs = FakeGcs(until=0)
    assert run(gcs, lambda _: [*BASE, REPLICA]) == ("the head is gone", 0)
    assert gcs.drained == []


def test_a_head_that_goes_meanwhile_ends_it() -> None:
    why, took = run(FakeGcs(until=1030), lambda _: [*BASE, REPLICA])
    assert why == "the head is gone"
    assert 30 <= took < 33


def test_one_lost_connection_is_not_the_end() -> None:
    gcs = FakeGcs()
    found = iter([True, True, False, True, False, False, True])
    gcs.there = lambda: next(found, True)
    why, took = run(gcs, lambda now: [*BASE, REPLICA] if now < 60 else BASE)
    assert (why, took) == ("all replicas have moved", 60)


def test_a_head_that_goes_while_it_is_asked_is_gone() -> None:
    gcs = FakeGcs()

    def asked(node_id: str, deadline: float, message: str) -> str:
        gcs._until = gcs.now
        return "no answer"

    gcs.drain = asked  # type: ignore[method-assign]
    assert run(gcs, lambda _: [*BASE, REPLICA]) == ("the head is gone", 0)


def test_an_answer_is_not_waited_for_when_the_head_has_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, over = threading.Event(), threading.Event()

    def ask(*_: object) -> str:
        asked.set()
        over.wait(60)
        return ""

    head = Head("127.0.0.1:1")  # nobody listens there
    monkeypatch.setattr(head, "_ask", ask)
    monkeypatch.setattr(drain, "_ANSWER_S", 1e9)
    try:
        assert head.drain("ab12", 0.0, "") == "no answer"
        assert asked.is_set()
    finally:
        over.set()


def test_a_refusal_ends_it() -> None:
    why, took = run(FakeGcs(refuses="it hangs"), lambda _: [*BASE, REPLICA])
    assert (why, took) == ("the node could not be drained: it hangs", 0)


def test_a_ray_that_ends_by_itself_ends_it() -> None:
    orphan = Process(30, 20, REPLICA.command)
    why, took = run(FakeGcs(), lambda now: [*BASE, REPLICA] if now < 5 else [SHELL, STARTER, orphan])
    assert why == "Ray has ended"
    assert 5 <= took < 6


def test_it_ends_before_the_pod_is_killed() -> None:
    why, took = run(FakeGcs(), lambda _: [*BASE, REPLICA])
    assert why == "the time is over; still here: ray::ServeReplica:m1--r1:node"
    assert 600 - drain._MARGIN_S <= took < 600 - drain._END_S


def test_what_ray_ends_with() -> None:
    node = Node.among(BASE)
    assert drain._keepers(node, BASE) == [20, 7]
    assert drain._keepers(None, [SHELL, STARTER]) == [7]  # a raylet that ended in order does not end its starter
    assert drain._keepers(None, [SHELL]) == []
    assert drain._keepers(node, [SHELL, RAYLET]) == [20]


def test_processes_of_this_machine_are_read() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()", "a b"], stdin=subprocess.PIPE) as child:
        (found,) = [one for one in drain.processes() if one.pid == child.pid]
        child.communicate(b"\n")
    assert found.command[1:] == ("-c", "input()", "a b")
    (me,) = [one for one in drain.processes() if one.pid == found.parent]
    assert me.command


def test_addresses_that_nobody_listens_at() -> None:
    assert not Head("127.0.0.1:1").there()
    assert not Head("nobody.invalid:6379").there()
    assert not Head("").there()
