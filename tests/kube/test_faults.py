"""The way to the API server breaks in many ways in the middle of a change; what comes of it is as if it had not.

One operator with two pipelines goes through all of it: an upgrade of one, another number of replicas of the other,
there and back. It must end where it ended undisturbed, with the same PUTs and no other, and go on living.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from answering_proxy import AnsweringProxy, Asked, Fault
from bed.control_plane import ControlPlane
from bed.processes import wait_for
from chart import Accounts
from cutting_proxy import CuttingProxy
from end_state import end_state
from kuberay.control import KubeRay
from operator_process import OperatorProcess
from pipelines import ENV, Json, Pipelines

NAMES = ("one", "two")
#: That are watched: the pipelines and the six of `kinds.CHILDREN`.
KINDS = 7
#: Longer than any fault: a leader that cannot renew has to end, which is another matter.
PATIENT = {**ENV, "SERVEPIPE_LEASE_DURATION_S": "300"}


@dataclass
class World:
    """An operator that reaches the API server through two proxies, with two pipelines."""

    plane: ControlPlane
    kuberay: KubeRay
    pipelines: Pipelines
    operator: OperatorProcess
    line: CuttingProxy
    server: AnsweringProxy
    state: int = 0
    asked: threading.Event = field(default_factory=threading.Event)
    """Set once all of a change is asked for."""
    undisturbed: dict[int, tuple[dict[str, Json], dict[str, int]]] = field(default_factory=dict)
    """By state what the pipelines come to, and how many PUTs it takes."""

    def begin(self) -> None:
        """The other state is asked for: one pipeline is upgraded, the other one scaled."""
        self.asked.clear()
        self.state = 1 - self.state
        self.pipelines.patch("one", nodes={"m1": {"args": ["good", self.state]}})
        self.pipelines.patch("two", nodes={"m2": {"replicas": 1 + self.state}})
        self.asked.set()

    def at_first_write(self, disturb: Callable[[], None]) -> None:
        """Have ``disturb`` called when the operator is about to write the first of what comes of the next change.

        A fault that comes earlier may keep it from hearing of the change at all.
        """
        self.asked.clear()

        def once_asked() -> None:
            if not self.asked.wait(60):
                raise TimeoutError("the other state was not asked for within 60 s")
            disturb()

        self.server.at_next(Asked("create", "controllerrevisions"), once_asked)

    def puts(self) -> dict[str, int]:
        """So far."""
        return {name: self.kuberay.puts(self.pipelines.namespace, self.pipelines.cluster(name)) for name in NAMES}

    def settle(self, timeout: float = 240.0) -> dict[str, Json]:
        """Wait until both are what is asked for; what they have come to."""
        for name in NAMES:
            self.pipelines.wait_settled(name, timeout)
            wait_for(f"Serve of {name} to be rid of what was removed", lambda name=name: self.is_rid(name), timeout)
        return {name: end_state(self.pipelines, name) for name in NAMES}

    def is_rid(self, name: str) -> bool:
        """Whether Serve has nothing but what it was sent last: replicas of what was removed take a while to end."""
        where = self.pipelines.namespace, self.pipelines.cluster(name)
        sent = {one["name"] for one in self.kuberay.last_puts(*where)[-1].config["applications"]}
        return set(self.kuberay.look(*where)["applications"]) == sent

    def change(self, disturb: Callable[[], None] = lambda: None, first: Callable[[], None] = lambda: None) -> None:
        """The other state, with ``disturb`` in the middle of the way to it, against the same change undisturbed.

        Args:
            first: What has to be before it is asked for: an operator can be done before ``disturb`` has begun.
        """
        self.settle()  # also after a test that failed half-way
        before = self.puts()
        first()
        self.begin()
        disturb()
        ends = self.settle()
        wanted, most = self.undisturbed[self.state]
        assert ends == wanted
        assert {name: count - before[name] for name, count in self.puts().items()} == most
        for name in NAMES:
            assert ends[name]["problems"] == []


@pytest.fixture(scope="module")
def world(
    control_plane: ControlPlane, kuberay: KubeRay, accounts: Accounts, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("faults")
    namespace = control_plane.create_namespace("faults")
    account = accounts.of(namespace, "faults")
    server = AnsweringProxy(control_plane)
    line = CuttingProxy(control_plane, server.url)
    operator = OperatorProcess(
        folder, line.kubeconfig(account.kubeconfig, folder), namespace, env=PATIENT, user=account.user
    )
    try:
        operator.start()
        operator.wait_ready()
        pipelines = Pipelines(control_plane, kuberay, namespace, operator)
        made = World(control_plane, kuberay, pipelines, operator, line, server)
        for name in NAMES:
            pipelines.apply(pipelines.resource(name, {"m1": ["good", 0], "m2": {"import": "m:M", "replicas": 1}}))
        made.settle()
        for _ in range(2):
            before = made.puts()
            made.begin()
            ends = made.settle()
            made.undisturbed[made.state] = (
                ends,
                {name: count - before[name] for name, count in made.puts().items()},
            )
        yield made
    finally:
        operator.kill()
        line.stop()
        server.stop()


@pytest.fixture(autouse=True)
def lives_on(world: World) -> Iterator[None]:
    """The operator is the same process before and after each fault, and says that it is ready."""
    pid = world.operator.pid
    yield
    world.server.no_faults()
    world.server.refresh()
    world.line.reopen()
    world.line.let_flow()
    world.operator.must_run()
    assert world.operator.pid == pid
    world.operator.wait_ready()


def test_undisturbed(world: World) -> None:
    """What the others are measured by is the same each time."""
    world.change()


def test_the_api_server_is_restarted(world: World) -> None:
    world.change(world.plane.restart_api_server)


def test_etcd_is_slow(world: World) -> None:
    etcd = world.plane.etcd
    world.at_first_write(etcd.freeze)
    world.change(_once_looks_fail(world, 1, etcd.thaw))


def test_connections_are_cut(world: World) -> None:
    def cut() -> None:
        for _ in range(8):
            seen = world.line.connections
            world.line.cut()
            wait_for("new connections", lambda seen=seen: world.line.connections > seen + 2, 30, world.operator.tail)

    world.change(cut)


def test_the_way_is_closed_for_a_while(world: World) -> None:
    def close() -> None:
        world.line.close()
        try:
            wait_for("the loss to be said", lambda: world.operator.ready()[0] == 503, 30, world.operator.tail)
        finally:
            world.line.reopen()

    world.change(close)


def test_nothing_comes_back_for_a_while(world: World) -> None:
    """No connection breaks: requests run into their time-outs, and whether writes arrived is not known."""
    world.at_first_write(world.line.stop_up)
    world.change(_once_looks_fail(world, 2, world.line.let_flow))


def test_children_vanish_before_a_new_list(world: World) -> None:
    """The watches end, what they watched goes, and the version to go on from is too old: only the list tells."""
    namespace, api = world.pipelines.namespace, world.plane.api

    def vanish() -> None:
        world.line.close()
        for name in NAMES:
            api.delete(f"/api/v1/namespaces/{namespace}/services/{name}")
            for policy in world.pipelines.children("apis/networking.k8s.io/v1:networkpolicies", name):
                api.delete(
                    f"/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies/{policy['metadata']['name']}"
                )
        world.line.reopen()
        _list_anew(world)

    world.change(vanish)


@pytest.mark.parametrize(("code", "carried_out"), [(429, False), (500, False), (503, False), (500, True), (504, True)])
def test_writes_are_refused_or_their_answers_lost(world: World, code: int, carried_out: bool) -> None:
    """Each kind of write fails twice in turn, before or after the server did what it was asked for."""
    faults = [
        world.server.fault(
            Fault(
                lambda asked, verb=verb, resource=resource: asked == Asked(verb, resource),
                code,
                2,
                carried_out,
                "0.3" if code == 429 else "",
            )
        )
        for verb, resource in (
            ("create", "controllerrevisions"),
            ("patch", "servepipelines/status"),
            ("patch", "rayclusters"),
            ("delete", "controllerrevisions"),
        )
    ]
    world.change()
    print([len(f.met) for f in faults])
    assert faults[0].met and faults[1].met


def test_every_read_fails_for_a_while(world: World) -> None:
    def refuse() -> None:
        fault = world.server.fault(Fault(lambda asked: asked.verb in ("get", "list", "watch"), 503))
        world.line.cut()
        wait_for("reads that fail", lambda: len(fault.met) >= 20, 30, world.operator.tail)
        world.server.no_faults()

    world.change(refuse)


def test_someone_else_writes_the_same_objects_all_the_time(world: World) -> None:
    with _meddling(world) as count:
        world.change()
        seen = count()
        wait_for("more of it", lambda: count() > seen + 20, 30)
    assert count() > 20


SEEN = ("rayclusters", "pods", "services", "networkpolicies", "poddisruptionbudgets")


@pytest.mark.parametrize("listed", [False, True], ids=["late-events", "old-lists"])
def test_children_are_seen_as_they_were(world: World, listed: bool) -> None:
    """Changes of the children are told late; with ``listed`` a new list does not tell of them either."""
    _list_anew(world)  # the proxy's old lists are of now
    before: dict[str, int] = {}
    answers = world.server.stale_answers

    def hold_back() -> None:
        before.update(world.puts())
        world.server.grow_stale(*SEEN)

    def stale() -> None:
        service = f"/api/v1/namespaces/{world.pipelines.namespace}/services/one"
        world.plane.api.merge(service, {"metadata": {"annotations": {"example.com/seen": f"late {listed}"}}})
        wait_for("a change that is held back", lambda: world.server.stale_answers > answers, 60, world.operator.tail)
        wait_for("PUTs all the same", lambda: world.puts()["two"] > before["two"], 60, world.operator.tail)
        if listed:
            _list_anew(world)
        world.server.refresh()
        if listed:
            _list_anew(world)

    world.change(stale, hold_back)


def _once_looks_fail(world: World, times: int, mend: Callable[[], None]) -> Callable[[], None]:
    """Waits until looks have failed so many ``times`` from now on, then ``mend`` is called."""
    wanted = len(world.operator.messages("looking again")) + times

    def wait() -> None:
        try:
            world.operator.wait_for_message("looking again", wanted, 60)
        finally:
            mend()

    return wait


def _list_anew(world: World) -> None:
    """Every watch is told that its version is too old."""
    lists = len(world.operator.messages("listing again"))
    gone = world.server.fault(Fault(lambda asked: asked.verb == "watch", 410, KINDS))
    world.line.cut()
    world.operator.wait_for_message("listing again", lists + KINDS, 60)
    assert len(gone.met) == KINDS


@contextmanager
def _meddling(world: World) -> Iterator[Callable[[], int]]:
    """Annotates the pipelines and their children as fast as it goes; how often it did so far."""
    namespace, api = world.pipelines.namespace, world.plane.api
    end, counted = threading.Event(), [0]
    paths = [f"{world.pipelines.path}/{name}" for name in NAMES]
    paths += [f"/api/v1/namespaces/{namespace}/services/{name}" for name in NAMES]
    paths += [f"/apis/ray.io/v1/namespaces/{namespace}/rayclusters/{world.pipelines.cluster(name)}" for name in NAMES]

    def meddle() -> None:
        while not end.is_set():
            for path in paths:
                api.merge(path, {"metadata": {"annotations": {"example.com/count": str(counted[0])}}})
            counted[0] += 1

    thread = threading.Thread(target=meddle)
    thread.start()
    try:
        yield lambda: counted[0]
    finally:
        end.set()
        thread.join(30)
