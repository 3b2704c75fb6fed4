"""One cluster for the whole run, chosen by `--cluster` or by what this machine has, and what is installed in it."""

from __future__ import annotations

import itertools
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from bed.build import cache
from chart import CHART
from clusters.choice import MODES, NOTHING_POSSIBLE, Choice, choose, look
from clusters.cluster import Cluster
from clusters.current import CurrentError
from clusters.opening import open_cluster
from clusters.place import held
from image_set import ImageSet
from installation import Helm, Installation, install, kuberay_of
from resources import Shop, second_version
from world import World

Say = Callable[[str], None]

CHOICE = pytest.StashKey[Choice]()
#: When the run began, and whether nothing was built before it.
BEGUN = pytest.StashKey[tuple[float, bool]]()
#: They make clusters of their own on this machine, of which there can be one at a time.
OWN_CLUSTER = ("test_machine.py", "test_kuberay_pods.py")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("servepipe", "the cluster that the tests run on")
    group.addoption("--cluster", choices=MODES, help="kind, the one of KUBECONFIG, or one made on this machine")
    group.addoption("--keep", action="store_true", help="leave the cluster as it is at the end, to look at it")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "core: part of `make e2e-core`")
    config.addinivalue_line("markers", "needs(*abilities): what the test does to a cluster beside its namespaces")
    config.stash[BEGUN] = time.monotonic(), not all((cache() / name).exists() for name in ("node", "images"))
    config.stash[CHOICE] = choose(look(), config.getoption("--cluster"))


def pytest_sessionstart(session: pytest.Session) -> None:
    choice = session.config.stash[CHOICE]
    if choice.mode is None:
        pytest.exit(str(choice), returncode=NOTHING_POSSIBLE)
    # Whoever ends the run early, such as `timeout`, gets the cluster taken down all the same.
    signal.signal(signal.SIGTERM, _end)


def _end(*_: object) -> None:
    # `timeout` and make both send it: the second one must not end the clean-up. Children would inherit SIG_IGN.
    signal.signal(signal.SIGTERM, lambda *_: None)
    pytest.exit("ended by SIGTERM", returncode=128 + signal.SIGTERM)


def pytest_report_header(config: pytest.Config) -> str:
    return str(config.stash[CHOICE])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    begun, cold = config.stash[BEGUN]
    kind = "cold: binaries and images were built" if cold else "warm: binaries and base images were there"
    terminalreporter.write_line(f"e2e: {time.monotonic() - begun:.0f} s, {kind}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    mode = config.stash[CHOICE].mode
    for item in items:
        if mode != "machine" and item.path.name in OWN_CLUSTER:
            item.add_marker(
                pytest.mark.skip(reason=f"it makes a cluster of its own on this machine, and this is {mode}")
            )
        marker = item.get_closest_marker("needs")
        if marker is not None and mode == "current":
            reasons = "; ".join(str(ability) for ability in marker.args)
            item.add_marker(pytest.mark.skip(reason=f"{reasons}: not in a cluster that was there before"))
    items.sort(key=lambda item: item.path.name not in OWN_CLUSTER)


@pytest.fixture(scope="session")
def say(request: pytest.FixtureRequest) -> Say:
    """Prints lines past pytest's capture."""
    capture = request.config.pluginmanager.getplugin("capturemanager")

    def loudly(line: str) -> None:
        with capture.global_and_fixture_disabled():
            print(f"\n{line}", end="", flush=True)

    return loudly


@pytest.fixture(scope="session")
def second_shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the sources of the shop's second version."""
    return second_version(tmp_path_factory.mktemp("sources") / "two")


@pytest.fixture(scope="module")
def shop(world: World, images: ImageSet, second_shop: Path) -> Shop:
    """The shop in its first version, Ready."""
    shop = Shop(world, images, second_shop)
    world.apply(shop.compiled("one"))
    world.wait_settled("shop")
    return shop


@pytest.fixture(scope="session")
def folder(request: pytest.FixtureRequest) -> Iterator[Path]:
    """Where a cluster has its files. One on this machine is the only one, and this run's."""
    if request.config.stash[CHOICE].mode == "machine":
        with held() as folder:
            yield folder
    else:
        yield Path(tempfile.mkdtemp(prefix="servepipe-e2e-"))


@pytest.fixture(scope="session")
def cluster(folder: Path, say: Say, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    try:
        cluster = open_cluster(request.config.stash[CHOICE], folder, say)
    except CurrentError as error:
        pytest.exit(f"e2e: {error}", returncode=1)
    try:
        yield cluster
    finally:
        if request.config.getoption("--keep"):
            say(f"e2e: left as it is until the next run, KUBECONFIG={cluster.kubeconfig}")
        else:
            cluster.down()
            if request.session.testsfailed:
                say(f"e2e: logs in {folder}")
            else:
                shutil.rmtree(folder)


@pytest.fixture(scope="session")
def images(cluster: Cluster, second_shop: Path, say: Say) -> ImageSet:
    """Built and loaded when they are asked for; what every test needs, at once."""
    images = ImageSet(cluster, second_shop, say)
    images.bring("operator", "runtime", "diamond")
    return images


@pytest.fixture(scope="session")
def kuberay(cluster: Cluster, say: Say) -> Iterator[str]:
    """What makes pods of RayClusters in this cluster."""
    with kuberay_of(cluster, say) as kuberay:
        yield kuberay


@pytest.fixture(scope="session")
def installation(cluster: Cluster, kuberay: str, images: ImageSet, say: Say) -> Iterator[Installation]:
    """The chart, installed from the built image; the one that is there on a cluster of the user's."""
    with install(cluster, images, say) as installation:
        yield installation


@pytest.fixture(scope="module")
def helm(cluster: Cluster, installation: Installation, images: ImageSet) -> Iterator[Helm]:
    """To install, upgrade and uninstall it; at the end it is installed as before, maybe under another name."""
    helm = Helm(cluster, installation, images)
    yield helm
    helm.do("upgrade", CHART, "--install")
    installation.release = helm.release


NUMBERS = itertools.count(1)


@pytest.fixture(scope="module")
def world(cluster: Cluster, installation: Installation, request: pytest.FixtureRequest, say: Say) -> Iterator[World]:
    """A namespace of this module's own that enforces `restricted`."""
    stem = request.path.stem.removeprefix("test_").replace("_", "-")
    failed = request.session.testsfailed
    with World(cluster, f"{stem}-{next(NUMBERS)}").made() as world:
        yield world
        if request.session.testsfailed > failed:
            say(world.tell())
