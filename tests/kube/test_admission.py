"""Every rule of the CRD admits what is just right and refuses what is just wrong, by its own message."""

import copy
import re
from typing import Any

import pytest
import yaml
from bed.client import RefusedError
from bed.control_plane import ControlPlane
from conftest import CRDS
from crd_cases import FULL, SAYS, cases
from crd_rules import Rule, rules, without

CRD: dict[str, Any] = yaml.safe_load((CRDS / "servepipelines.servepipe.dev.yaml").read_text())
RULES = rules(CRD)


class Judge:
    """Tries objects, in dry runs, at one copy of the CRD."""

    def __init__(self, plane: ControlPlane, namespace: str, group: str) -> None:
        self.plane, self.group = plane, group
        self.path = f"/apis/{group}/v1alpha1/namespaces/{namespace}/servepipelines"
        plane.api.create(self.path, self._in_group({**FULL, "metadata": {"name": "subject"}}))

    def _in_group(self, obj: dict[str, Any]) -> dict[str, Any]:
        return {**copy.deepcopy(obj), "apiVersion": f"{self.group}/v1alpha1"}

    def complaints(self, obj: dict[str, Any], in_status: bool) -> list[tuple[str, str]]:
        """(field, message) for everything that the API server has against the object."""
        obj = self._in_group(obj)
        try:
            if in_status:
                obj["metadata"] = {"name": "subject"}
                obj["metadata"] = self.plane.api.get(f"{self.path}/subject")["metadata"]
                self.plane.api.replace(f"{self.path}/subject/status", obj, dry_run=True)
            else:
                self.plane.api.create(self.path, obj, dry_run=True)
        except RefusedError as refused:
            causes = refused.status.get("details", {}).get("causes", [])
            return [(plain(cause.get("field", "")), cause["message"]) for cause in causes] or [("", refused.message)]
        return []

    def verdict(self, rule: Rule) -> str | None:
        """None if the rule's cases come out as they should, else what went wrong."""
        in_status = rule.path[:1] == ("status",)
        accepted, refused, field = cases(rule)
        for obj in accepted:
            if complaints := self.complaints(obj, in_status):
                return f"{rule}: the boundary case is refused: {complaints}"
        says = re.escape(rule.what) if rule.kind == "cel" else SAYS[rule.kind]
        complaints = self.complaints(refused, in_status)
        if not any((name or "") == field and re.search(says, message) for name, message in complaints):
            return f"{rule}: no refusal at {field} that says {says!r}: {complaints}"
        return None


def plain(field: str) -> str:
    return "" if field == "<nil>" else re.sub(r"\[(.*?)\]", r".\1", field)


def moved(crd: dict[str, Any], group: str) -> dict[str, Any]:
    crd = copy.deepcopy(crd)
    crd["spec"]["group"], crd["metadata"]["name"] = group, f"servepipelines.{group}"
    del crd["spec"]["names"]["shortNames"]  # `kubectl get svp` goes on meaning the real ones
    return crd


def test_each_rule_has_cases_and_keeps_to_them(control_plane: ControlPlane, namespace: str) -> None:
    judge = Judge(control_plane, namespace, "servepipe.dev")
    wrong = [verdict for rule in RULES if (verdict := judge.verdict(rule))]
    assert not wrong, "\n".join(wrong)


def test_no_rule_can_go_unseen(control_plane: ControlPlane, namespace: str, summary: list[str]) -> None:
    """Each rule is deleted once, together with others that stand at other fields: its own case has to notice."""
    rounds: list[list[Rule]] = []
    seen: dict[tuple[str, ...], int] = {}
    for rule in RULES:
        field = (*rule.path, rule.what) if rule.kind == "required" else rule.path
        number = seen[field] = seen.get(field, -1) + 1
        rounds += [[] for _ in range(number + 1 - len(rounds))]
        rounds[number].append(rule)
    path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    mutants: list[tuple[list[Rule], dict[str, Any]]] = []
    vital = []  # without these the API server does not take the CRD at all
    while rounds:
        gone = rounds.pop()
        mutant = moved(without(CRD, gone), f"g{len(mutants)}.mutants.test")
        try:
            control_plane.api.create(path, mutant, dry_run=True)
        except RefusedError:
            if len(gone) == 1:
                vital += gone
            else:
                rounds += [gone[: len(gone) // 2], gone[len(gone) // 2 :]]
        else:
            mutants.append((gone, mutant))
    control_plane.install_crds([mutant for _, mutant in mutants])
    unseen = []
    for gone, mutant in mutants:
        judge = Judge(control_plane, namespace, mutant["spec"]["group"])
        unseen += [str(rule) for rule in gone if judge.verdict(rule) is None]
        control_plane.api.delete(f"{path}/{mutant['metadata']['name']}")
    assert not unseen, "deleted without a case that fails:\n" + "\n".join(unseen)
    summary.append(
        f"{len(RULES)} rules of the CRD deleted in {len(mutants)} copies of it; "
        f"without {len(vital)} of them the API server does not take it: {', '.join(map(str, vital))}"
    )
    assert sum(len(gone) for gone, _ in mutants) + len(vital) == len(RULES)


def test_a_rule_without_cases_is_noticed() -> None:
    with pytest.raises(KeyError):
        cases(Rule(("spec",), "cel", "a rule of tomorrow"))
    with pytest.raises(KeyError):
        cases(Rule(("spec", "fieldOfTomorrow"), "maximum", 1))
