"""docs/reference.md is what the CRD says."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from servepipe.api.crd import crd

ROOT = Path(__file__).parents[3]


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("crd_reference", ROOT / "scripts" / "crd_reference.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


crd_reference = load()
PAGE: str = crd_reference.page()


def row(section: str, field: str) -> list[str]:
    """The cells of one field."""
    text = PAGE.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    [line] = [line for line in text.splitlines() if re.match(rf"\| \**`{field}`\** \|", line)]
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def test_the_page_is_up_to_date() -> None:
    assert crd_reference.PAGE.read_text(encoding="utf-8") == PAGE, "run: make generate"


def test_every_object_of_the_crd_has_a_section_with_all_its_fields() -> None:
    root = crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
    count = 0

    def walk(schema: Any) -> None:
        nonlocal count
        if isinstance(schema, dict):
            if isinstance(schema.get("properties"), dict):
                count += 1
                for name in schema["properties"]:
                    assert f"`{name}`" in PAGE
            for value in schema.values():
                walk(value)

    walk({"spec": root["spec"], "status": root["status"]})
    assert len(re.findall(r"^## ", PAGE, flags=re.M)) == count


@pytest.mark.parametrize(
    ("section", "field", "kind", "default", "bounds"),
    [
        ("spec.nodes.NODE", "import", "string", "", '"module:name"; at most 512 characters'),
        ("spec.nodes.NODE", "maxQueuedRequests", "integer", "-1: no bound", "-1 to 1,000,000"),
        ("spec.nodes.NODE", "gpuResourceName", "string", "`nvidia.com/gpu`", "at most 253 characters"),
        ("spec.nodes.NODE", "upgrade", "[object](#specnodesnodeupgrade)", "", ""),
        ("spec.nodes.NODE.upgrade", "steps", "list of [object](#specnodesnodeupgradesteps)", "", "1 to 20 items"),
        ("spec", "nodes", "map of [object](#specnodesnode)", "", "1 to 128 entries"),
        ("spec", "image", "string", "", "an image reference without spaces; at most 512 characters"),
        ("spec.ingress.service", "type", "`ClusterIP`, `NodePort`, `LoadBalancer`", "`ClusterIP`", ""),
        ("spec.nodes.NODE.resources", "custom", "map of quantity", "", "at most 16 entries"),
    ],
)
def test_a_field(section: str, field: str, kind: str, default: str, bounds: str) -> None:
    assert row(section, field)[1:4] == [kind, default, bounds]


def test_required_fields_are_bold() -> None:
    assert row("spec.nodes.NODE", "import")[0] == "**`import`**"
    assert row("spec.nodes.NODE", "args")[0] == "`args`"
