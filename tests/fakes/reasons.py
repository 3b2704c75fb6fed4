"""The reasons of the operator, as its code declares them, and of which problems of a RayCluster they tell."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import get_args

import servepipe_operator
from servepipe_operator.engine.reasons import FailedPods, Reason

__all__ = ["problems_in_the_code", "reasons_in_the_code"]

_ROOT = Path(servepipe_operator.__file__).parent
_FILES = (
    *sorted(_ROOT.glob("engine/*.py")),
    *sorted(_ROOT.glob("objects/*.py")),
    *sorted(_ROOT.glob("adapters/*.py")),
    _ROOT / "reconcile.py",
)


def reasons_in_the_code() -> set[str]:
    """Whatever may be the reason of a condition: mypy lets no other one be set."""
    return set(get_args(Reason))


def problems_in_the_code() -> dict[Reason, bool]:
    """Reasons of a `ClusterProblem` that is made with its reason, and whether it is made with ``stalled``."""
    known: dict[str, Reason] = {reason: reason for reason in get_args(Reason)}
    found: dict[Reason, bool] = dict.fromkeys(get_args(FailedPods), True)
    for path in _FILES:
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "ClusterProblem":
                stalled = any(one.arg == "stalled" and getattr(one.value, "value", False) for one in call.keywords)
                if isinstance(call.args[0], ast.Constant):
                    found[known[call.args[0].value]] = stalled
    return found
