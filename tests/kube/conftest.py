"""One control plane for the whole test session, with the CRDs; every test has a namespace of its own."""

import itertools
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from bed.build import binaries, helm
from bed.client import Api
from bed.control_plane import ControlPlane, load_crd
from bed.processes import wait_for
from bed.wire import Wire
from chart import Accounts
from chart_render import Helm
from kuberay.control import KubeRay, in_thread
from kuberay_contract import KUBELET_OFF, World, api_of
from operator_process import OperatorProcess, StartOperator
from pipelines import ENV, Pipelines
from scenes import Outcome, Theatre
from shell_bed import FAKE, Start

CRDS = Path(__file__).parents[2] / "crds"
CRD_PATH = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
SUMMARY = pytest.StashKey[list[str]]()
NUMBERS = itertools.count(1)


def pytest_configure(config: pytest.Config) -> None:
    config.stash[SUMMARY] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What looks at all that the operators of the others did comes last."""
    items.sort(key=lambda item: item.name == "test_no_operator_of_any_test_used_another_right")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for line in config.stash.get(SUMMARY, []):
        terminalreporter.write_line(f"kube: {line}")


@pytest.fixture(scope="session")
def summary(request: pytest.FixtureRequest) -> list[str]:
    """Lines that the end of the output shows."""
    return request.config.stash[SUMMARY]


def _loudly(config: pytest.Config) -> Callable[[str], None]:
    """Prints lines past pytest's capture."""
    capture = config.pluginmanager.getplugin("capturemanager")

    def say(line: str) -> None:
        with capture.global_and_fixture_disabled():
            print(f"\n{line}", flush=True)

    return say


@pytest.fixture(scope="session")
def control_plane(
    request: pytest.FixtureRequest, summary: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ControlPlane]:
    """A running API server with the CRDs of ServePipeline and RayCluster."""
    found = binaries(say=_loudly(request.config))
    plane = ControlPlane(tmp_path_factory.mktemp("control-plane"), found)
    try:
        seconds = plane.start()
        summary += [
            found.origin,
            f"API server, etcd and controller-manager up in {seconds:.1f} s; logs in {plane.folder}",
        ]
        named = os.environ.get("KUBERAY_CRD")
        summary.append(
            f"RayCluster as in KUBERAY_CRD={named}"
            if named
            else "RayCluster's CRD is one of our own without checks; name KubeRay's in KUBERAY_CRD"
        )
        raycluster = Path(named) if named else Path(__file__).parent / "bed" / "raycluster-crd.yaml"
        plane.install_crds([load_crd(path) for path in (*sorted(CRDS.glob("*.yaml")), raycluster)])
        yield plane
    finally:
        plane.stop()


@pytest.fixture(scope="session")
def kuberay(control_plane: ControlPlane) -> Iterator[KubeRay]:
    """KubeRay's stand-in, at work in all namespaces; see the package `kuberay`."""
    standin = in_thread(control_plane.kubeconfig)
    yield standin
    standin.stop()


@pytest.fixture(scope="session")
def contract_api(request: pytest.FixtureRequest, summary: list[str]) -> Iterator[Api]:
    """An API server at which a KubeRay works: the stand-in, or the one of KUBERAY_KUBECONFIG where that is set."""
    named = os.environ.get("KUBERAY_KUBECONFIG")
    if named:
        summary.append(f"KubeRay's contract checked against the one at KUBERAY_KUBECONFIG={named}")
        api = api_of(Path(named))
        yield api
        api.close()
    else:
        request.getfixturevalue("kuberay")
        plane: ControlPlane = request.getfixturevalue("control_plane")
        yield plane.api


@pytest.fixture
def world(contract_api: Api, request: pytest.FixtureRequest) -> Iterator[World]:
    """A new namespace at `contract_api` in which no pod runs by itself."""
    words = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).strip("-")[:30].strip("-")
    name = f"c{next(NUMBERS)}-{os.getpid()}-{words}"
    contract_api.create("/api/v1/namespaces", {"metadata": {"name": name, "labels": KUBELET_OFF}})
    account = f"/api/v1/namespaces/{name}/serviceaccounts/default"
    wait_for("a service account", lambda: contract_api.find(account), 60)
    yield World(contract_api, name)
    contract_api.delete(f"/api/v1/namespaces/{name}")


@pytest.fixture
def namespace(control_plane: ControlPlane, request: pytest.FixtureRequest) -> Iterator[str]:
    """A new namespace for this test in which Pods can be created; its end is begun, not waited for."""
    words = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).strip("-")[:40].strip("-")
    name = control_plane.create_namespace(f"t{next(NUMBERS)}-{words}")
    yield name
    control_plane.api.delete(f"/api/v1/namespaces/{name}")


@pytest.fixture(scope="session")
def accounts(control_plane: ControlPlane, request: pytest.FixtureRequest) -> Accounts:
    """Service accounts of operators with the chart's rights."""
    return Accounts(control_plane, helm(say=_loudly(request.config)))


@pytest.fixture(scope="session", name="helm")
def helm_and_the_chart(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Helm:
    """Renders the chart; knows no cluster."""
    return Helm(helm(say=_loudly(request.config)), tmp_path_factory.mktemp("helm"))


@pytest.fixture
def start_operator(control_plane: ControlPlane, accounts: Accounts, tmp_path: Path) -> Iterator[StartOperator]:
    """Starts operators as processes, see `OperatorProcess`. They end with the test.

    Without a kubeconfig each has a service account of its own with the chart's rights, named as its ``instance``.
    """
    started: list[OperatorProcess] = []

    def start(namespace: str, kubeconfig: Path | None = None, **more: Any) -> OperatorProcess:
        instance = more.pop("instance", f"operator-{len(started)}")
        user = ""
        if kubeconfig is None:
            installation = (more.get("env") or {}).get("SERVEPIPE_INSTALLATION", "servepipe")
            account = accounts.of(namespace, instance, more.get("namespaces", ()), installation)
            kubeconfig, user = account.kubeconfig, account.user
        operator = OperatorProcess(tmp_path, kubeconfig, namespace, instance=instance, user=user, **more)
        started.append(operator)
        operator.start()
        return operator

    yield start
    for operator in started:
        operator.kill()


@pytest.fixture
def pipelines(
    control_plane: ControlPlane, kuberay: KubeRay, namespace: str, start_operator: StartOperator
) -> Pipelines:
    """Pipelines of this test's namespace, run by an operator of their own that leads and watches only that."""
    operator = start_operator(namespace, namespaces=[namespace], env=ENV)
    operator.wait_ready()
    return Pipelines(control_plane, kuberay, namespace, operator)


@pytest.fixture
def start(start_operator: StartOperator, control_plane: ControlPlane, namespace: str) -> Start:
    """Starts the operator's shell around a reconciler that only looks, watching this test's namespace only.

    By default as the administrator.
    """

    def begin(kubeconfig: Path = control_plane.kubeconfig, **more: Any) -> OperatorProcess:
        return start_operator(namespace, kubeconfig, **{"namespaces": (namespace,), "program": FAKE} | more)

    return begin


@pytest.fixture
def without(control_plane: ControlPlane) -> Iterator[Callable[[str], Callable[[], None]]]:
    """Takes a CRD away; calling the answer puts it back, which happens at the end in any case."""
    taken: dict[str, dict[str, Any]] = {}

    def back(name: str) -> None:
        if name in taken:
            control_plane.install_crd(taken.pop(name))

    def take(name: str) -> Callable[[], None]:
        live = control_plane.api.get(f"{CRD_PATH}/{name}")
        taken[name] = {**live, "metadata": {"name": name, "annotations": live["metadata"].get("annotations") or {}}}
        control_plane.api.delete(f"{CRD_PATH}/{name}")
        wait_for(f"{name} to go", lambda: control_plane.api.find(f"{CRD_PATH}/{name}") is None)
        return lambda: back(name)

    yield take
    for name in list(taken):
        back(name)


@pytest.fixture
def wire(control_plane: ControlPlane) -> Iterator[Wire]:
    """A connection to the API server that can be cut."""
    wire = Wire(control_plane.url)
    yield wire
    wire.close()


@pytest.fixture(scope="module")
def theatre(
    control_plane: ControlPlane,
    kuberay: KubeRay,
    accounts: Accounts,
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Theatre]:
    """All scenes of the module that were asked for are on; see `scenes`."""
    asked = [item.callspec.params["outcome"] for item in request.session.items if _is_scene(item, request.path)]
    name = f"t{next(NUMBERS)}-{request.path.stem.removeprefix('test_').replace('_', '-')}"
    theatre = Theatre(control_plane, kuberay, accounts, tmp_path_factory.mktemp(name), name, asked)
    yield theatre
    theatre.close()


def _is_scene(item: pytest.Item, path: Path) -> bool:
    return item.path == path and isinstance(item, pytest.Function) and "outcome" in getattr(item, "fixturenames", ())


@pytest.fixture
def outcome(theatre: Theatre, request: pytest.FixtureRequest) -> Outcome:
    """Waits for the end of a scene, and raises what it raised."""
    return lambda: theatre.outcome(request.param)
