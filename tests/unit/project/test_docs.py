"""The code on the documentation's pages runs, and what the operator's page names exists."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from servepipe_operator.controller.metrics import Metrics
from servepipe_operator.controller.settings import SETTINGS

ROOT = Path(__file__).parents[3]


def python_blocks() -> list[tuple[str, str]]:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    found = []
    for page in pages:
        for number, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.S), 1):
            if "import" in code:  # architecture.md shows signatures, which are not programs
                found.append((f"{page.name}-{number}", code))
    return found


@pytest.mark.parametrize(("name", "code"), python_blocks(), ids=lambda value: value if "\n" not in value else "")
def test_code_on_a_page_runs(name: str, code: str, tmp_path: Path) -> None:
    file = tmp_path / "page.py"
    file.write_text(code)
    run = subprocess.run([sys.executable, "-W", "error", str(file)], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    compiled = subprocess.run(
        [sys.executable, "-W", "error", "-m", "servepipe", "compile", str(file)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert compiled.returncode == 0, compiled.stderr
    assert compiled.stdout.startswith("apiVersion: servepipe.dev/v1alpha1\n")


def test_the_operators_page_has_every_metric() -> None:
    page = (ROOT / "docs" / "operator.md").read_text()
    text = Metrics("0", "main").text().decode()
    named = {re.sub(r"_(total|created)$", "", name) for name in re.findall(r"^# TYPE (\S+)", text, flags=re.M)}
    missing = {name for name in named if name not in page}
    assert named
    assert not missing, f"not in docs/operator.md: {sorted(missing)}"


def test_the_settings_that_the_operators_page_names_exist() -> None:
    page = (ROOT / "docs" / "operator.md").read_text()
    known = {name.replace("_", "-") for name, _, _ in SETTINGS}
    section = page.partition("## Settings")[2].partition("\n## ")[0]
    named = {
        name
        for line in section.splitlines()
        if line.startswith("- ")
        for name in re.findall(r"`([a-z-]+)`", line.partition(":")[0])
    }
    assert {"dashboard", "steady-s"} <= named
    assert named <= known, f"no settings: {sorted(named - known)}"
