"""Argo CD's health check on statuses of every shape; `tests/unit/engine/test_kstatus.py` has it judge every reason."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from argocd import SCRIPT, health

from servepipe.api.v1alpha1 import API_VERSION, KIND

Json = dict[str, Any]
GROUP = API_VERSION.partition("/")[0]
PAGE = Path(__file__).parents[3] / "docs" / "gitops.md"


def live(*conditions: tuple[str, str, str], **status: Any) -> Json:
    told = [{"type": kind, "status": is_so, "reason": why, "message": "is so"} for kind, is_so, why in conditions]
    return {"metadata": {"generation": 3}, "status": {"observedGeneration": 3, "conditions": told, **status}}


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (None, "no operator has looked at it yet"),
        ({}, "no operator has looked at it yet"),
        ({"observedGeneration": 3}, "no operator has looked at it yet"),
        ({"observedGeneration": 2, "conditions": []}, "the operator has not seen the latest change yet"),
        ({"observedGeneration": 3, "conditions": []}, "not ready yet"),
        ({"conditions": [{"type": "Accepted", "status": "True"}]}, "not ready yet"),
        ({"conditions": [{"type": "Ready", "status": "Unknown"}]}, "Ready: "),
    ],
)
def test_what_says_too_little_is_progressing(status: Json | None, expected: str) -> None:
    obj: Json = {"metadata": {"generation": 3}}
    if status is not None:
        obj["status"] = status
    assert health(obj) == ("Progressing", expected)


def test_what_is_deleted_is_progressing_whatever_it_says() -> None:
    obj = live(("Ready", "True", "Ready"))
    obj["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert health(obj) == ("Progressing", "is being deleted")


def test_the_message_is_that_of_the_condition_that_decides() -> None:
    ready = ("Ready", "True", "Ready")
    assert health(live(ready)) == ("Healthy", "Ready: is so")
    assert health(live(("Reconciling", "False", "Done"), ready)) == ("Healthy", "Ready: is so")
    assert health(live(ready, ("Reconciling", "True", "Upgrading"))) == ("Progressing", "Upgrading: is so")
    assert health(live(("Ready", "False", "BuildFailed"), ("Stalled", "True", "BuildFailed"))) == (
        "Degraded",
        "BuildFailed: is so",
    )
    assert health(live(("Ready", "False", "Suspended"))) == ("Suspended", "Suspended: is so")


def test_an_older_generation_hides_what_it_said() -> None:
    assert health(live(("Stalled", "True", "BuildFailed"), observedGeneration=2))[0] == "Progressing"


def test_the_page_names_the_key_and_the_script() -> None:
    page = PAGE.read_text()
    key = f"resource.customizations.health.{GROUP}_{KIND}"
    assert key in page
    assert key in SCRIPT.read_text()
    assert re.search(rf"--rawfile \w+ docs/gitops/{SCRIPT.name}", page)
