"""What pods say about connections is held against the table of what policies allow."""

import json
import subprocess
from collections.abc import Callable, Mapping

import policies
import pytest
from bed.processes import DeadlineError
from policies import REACHED, Row

KNOWN = {"shop/head": "10.0.0.1", "shop/worker": "10.0.0.2"}
REFUSED = "dial tcp 10.0.0.1:8265: i/o timeout"
ROWS = [Row("ops/operator", "shop/head", 8265, True), Row("web/caller", "shop/head", 8265, False)]


class FakeCluster:
    """Answers what its pods would; `outcome` is asked for each connection."""

    def __init__(self, outcome: Callable[[str, str], str]) -> None:
        self.outcome = outcome

    def kubectl(
        self, *arguments: str, stdin: str | None = None, check: bool = True, timeout: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        said = ""
        if arguments[0] == "exec":
            source = f"{arguments[2]}/{arguments[3]}"
            said = "".join(f"{target} {self.outcome(source, target)}\n" for target in arguments[7:])
        elif arguments[0] == "get":
            names = ("open", "closed", "client")
            status = {"conditions": [{"type": "Ready", "status": "True"}]}
            items = [{"metadata": {"name": name}, "status": {**status, "podIP": name}} for name in names]
            said = json.dumps({"items": items})
        else:
            assert arguments[0] in ("apply", "delete")
            if stdin is not None and '"NetworkPolicy"' in stdin:
                self.policy_applied()
        return subprocess.CompletedProcess(arguments, 0, said, "")

    def policy_applied(self) -> None: ...


def test_a_pods_words_are_read() -> None:
    said = f"10.0.0.1:80 reached\n10.0.0.1:8265 {REFUSED}\n"
    assert policies.parsed(said) == {"10.0.0.1:80": REACHED, "10.0.0.1:8265": REFUSED}


@pytest.mark.parametrize(
    ("operator", "caller", "wrong"),
    [
        (REACHED, REFUSED, []),
        (REFUSED, REFUSED, [f"ops/operator -> shop/head:8265 allowed, and it was: {REFUSED}"]),
        (REACHED, REACHED, ["web/caller -> shop/head:8265 refused, and it was: reached"]),
    ],
)
def test_a_row_that_came_out_otherwise_is_named(operator: str, caller: str, wrong: list[str]) -> None:
    by_source: Mapping[str, str] = {"ops/operator": operator, "web/caller": caller}
    cluster = FakeCluster(lambda source, _: by_source[source])
    assert policies.look(cluster, ROWS, KNOWN) == wrong


def test_it_takes_all_rows_right_at_once_and_twice() -> None:
    looks = {"ops/operator": [REFUSED, REACHED, REACHED], "web/caller": [REFUSED, REFUSED, REACHED]}
    cluster = FakeCluster(lambda source, _: looks[source].pop(0))
    with pytest.raises(AssertionError, match="and then not:\nweb/caller"):
        policies.hold(cluster, ROWS, KNOWN)


def test_a_pod_that_does_not_answer_for_an_address_counts_for_nothing() -> None:
    cluster = FakeCluster(lambda _, target: "" if target.endswith("1") else f"{REACHED}\nother {REACHED}")
    with pytest.raises(AssertionError, match="was asked for"):
        policies.tried(cluster, "shop", "caller", ["10.0.0.2:80"])


class Network(FakeCluster):
    """A network that does, or does not, enforce policies; with `breaks` no pod connects any more after the first."""

    def __init__(self, *, enforces: bool, breaks: bool = False) -> None:
        super().__init__(self._outcome)
        self.enforces, self.breaks, self.applied = enforces, breaks, False

    def policy_applied(self) -> None:
        self.applied = True

    def _outcome(self, source: str, target: str) -> str:
        closed = self.enforces and target == "closed:8080"
        return REFUSED if self.applied and (closed or self.breaks) else REACHED


def test_a_network_that_enforces_is_told_from_one_that_does_not() -> None:
    assert policies.enforced(Network(enforces=True), "image", "probe").enforced
    found = policies.enforced(Network(enforces=False), "image", "probe", seconds=0.01)
    assert not found.enforced
    assert str(found).startswith("NOT ENFORCED: pods go on to connect")


def test_a_network_that_breaks_is_not_one_that_enforces() -> None:
    with pytest.raises(DeadlineError, match="probe/client -> probe/open:8080 allowed"):
        policies.enforced(Network(enforces=True, breaks=True), "image", "probe", seconds=0.01)


def test_pods_are_restricted() -> None:
    spec = policies.listener("image", "shop", "head", {}, [8265, 8080])["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["containers"][0]["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert spec["containers"][0]["args"] == ["serve", "8265", "8080"]
