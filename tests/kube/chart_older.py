"""The chart as an older version had it: what upgrades start from before there is a release."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import yaml
from bed.client import Object
from bed.control_plane import load_crd
from chart import CHART

Json = dict[str, Any]
NAME = "servepipelines.servepipe.dev"
GENERATED = Path(__file__).parents[2] / "crds" / f"{NAME}.yaml"


def older(folder: Path) -> Path:
    """The chart of an older version, whose CRD has no `spec.paused` yet."""
    chart = folder / "servepipe"
    shutil.copytree(CHART, chart)
    about = chart / "Chart.yaml"
    about.write_text(re.sub(r"(?m)^version: .*$", "version: 0.0.1", about.read_text()))
    crd = load_crd(GENERATED)
    del fields(crd)["paused"]
    (chart / "files" / "crds" / f"{NAME}.yaml").write_text(yaml.safe_dump(crd, sort_keys=False))
    return chart


def fields(crd: Object) -> Json:
    """Of the spec."""
    schema: Json = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    return schema
