"""What the repository promises about itself: its layout, its imports, its decisions."""

from __future__ import annotations

import json
import operator
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parents[3]
HEAVY = ("ray", "numpy", "kopf", "kubernetes", "pydantic", "yaml", "starlette", "grpc")


def test_the_folder_called_operator_does_not_hide_the_standard_library() -> None:
    assert Path(operator.__file__).is_relative_to(sysconfig.get_path("stdlib"))
    for folder in ("operator", "sdk", "tests", "e2e"):
        assert not (ROOT / folder / "__init__.py").exists(), f"{folder}/__init__.py would be importable as {folder!r}"


def test_importing_servepipe_is_light() -> None:
    code = "import json, sys; import servepipe; print(json.dumps(sorted({m.split('.')[0] for m in sys.modules})))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert not set(HEAVY) & set(json.loads(run.stdout))


def test_every_decision_is_listed() -> None:
    folder = ROOT / "docs" / "adr"
    listed = set(re.findall(r"\((\d{4}-[^)]+\.md)\)", (folder / "README.md").read_text()))
    assert listed == {p.name for p in folder.glob("[0-9]*.md")}
