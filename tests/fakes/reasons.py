"""Every reason that a condition of a pipeline can have, read from the operator's code."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import servepipe_operator

__all__ = ["PASSED_ON", "problems_in_the_code", "reasons_in_the_code"]

#: KubeRay's own, which are passed on.
PASSED_ON = frozenset({"FailedCreateHeadPod", "FailedCreateWorkerPod", "FailedDeleteHeadPod", "FailedDeleteWorkerPod"})

_ROOT = Path(servepipe_operator.__file__).parent
_FILES = (
    *sorted(_ROOT.glob("engine/*.py")),
    *sorted(_ROOT.glob("objects/*.py")),
    _ROOT / "adapters" / "kube_cluster.py",
    _ROOT / "adapters" / "refusals.py",
    _ROOT / "controller" / "pipeline.py",
    _ROOT / "reconcile.py",
)
_REASON = re.compile(r"[A-Z][a-z]+([A-Z][A-Za-z]*)*")
#: Where a word stands that looks like a reason and is none.
_OTHERS = frozenset({"True", "False", "Failed", "Normal", "RayCluster"})


def reasons_in_the_code() -> set[str]:
    """Of all files that make conditions, whatever may be the reason of one."""
    found = {reason for path in _FILES for reason in _reasons(ast.parse(path.read_text()), path.name)}
    return (found - _OTHERS) | PASSED_ON


def problems_in_the_code() -> dict[str, bool]:
    """Reasons of a `ClusterProblem`, and whether it is made with ``stalled``."""
    found = dict.fromkeys(PASSED_ON, True)
    for path in _FILES:
        tree = ast.parse(path.read_text())
        for call in ast.walk(tree):
            if isinstance(call, ast.Call) and _name(call) == "ClusterProblem":
                stalled = any(one.arg == "stalled" and getattr(one.value, "value", False) for one in call.keywords)
                found |= dict.fromkeys(_texts(call.args[0], {}), stalled)
    return {reason: stalled for reason, stalled in found.items() if _REASON.fullmatch(reason)}


def _constants() -> dict[str, object]:
    """Words that a module gives a name, also for other modules."""
    return {
        one.targets[0].id: one.value.value
        for path in _FILES
        for one in ast.parse(path.read_text()).body
        if isinstance(one, ast.Assign) and isinstance(one.targets[0], ast.Name) and isinstance(one.value, ast.Constant)
    }


def _reasons(tree: ast.Module, file: str) -> Iterator[str]:
    constants = _constants()
    for node in ast.walk(tree):
        places: list[ast.expr] = []
        if isinstance(node, ast.Call) and _name(node) == "Condition":
            places = node.args[2:3]
        elif isinstance(node, ast.Call) and _name(node) in ("blind", "_accepted"):
            places = node.args
        elif isinstance(node, ast.Call) and _name(node) == "ClusterProblem":
            places = node.args[:1]
        elif isinstance(node, ast.Tuple) and len(node.elts) > 1:
            places = node.elts[:1]  # a reason and a message
        elif isinstance(node, ast.Return) and file == "refusals.py" and node.value is not None:
            places = [node.value]
        for place in places:
            yield from (text for text in _texts(place, constants) if _REASON.fullmatch(text))


def _name(call: ast.Call) -> str:
    return call.func.id if isinstance(call.func, ast.Name) else ""


def _texts(node: ast.expr, constants: dict[str, object]) -> Iterator[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.Name | ast.Attribute):
        named = constants.get(node.id if isinstance(node, ast.Name) else node.attr)
        if isinstance(named, str):
            yield named
    elif isinstance(node, ast.IfExp):
        yield from _texts(node.body, constants)
        yield from _texts(node.orelse, constants)
