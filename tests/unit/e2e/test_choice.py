"""Which cluster the end-to-end tests run on."""

from __future__ import annotations

import itertools
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from clusters.choice import MODES, NOTHING_POSSIBLE, Facts, choose

NOTHING = Facts(linux=False, root=False, kind=False, docker="docker is not on PATH", kubeconfig="")
DOCKER = replace(NOTHING, docker="", kind=True)
BARE = replace(NOTHING, linux=True, root=True)


@pytest.mark.parametrize(
    ("facts", "mode", "because"),
    [
        (DOCKER, "kind", "a Docker engine runs and kind is installed"),
        (replace(DOCKER, linux=True, root=True), "kind", "a Docker engine runs"),
        (replace(BARE, docker=""), "machine", "kind is not on PATH, and this is root on Linux"),
        (BARE, "machine", "docker is not on PATH, and this is root on Linux"),
        (replace(BARE, root=False), None, "needs root"),
        (replace(NOTHING, root=True), None, "needs Linux"),
        (replace(NOTHING, kubeconfig="/home/me/.kube/config"), None, "--cluster=current only"),
    ],
)
def test_without_a_wish(facts: Facts, mode: str | None, because: str) -> None:
    choice = choose(facts, None)
    assert choice.mode == mode
    assert because in choice.because


@pytest.mark.parametrize(
    ("facts", "wanted", "because"),
    [
        (replace(BARE, kubeconfig="x"), "current", ""),
        (BARE, "current", "KUBECONFIG is not set"),
        (DOCKER, "machine", "needs Linux"),
        (BARE, "kind", "docker is not on PATH"),
        (replace(DOCKER, kind=False), "kind", "kind is not on PATH"),
    ],
)
def test_a_wish_is_granted_or_refused_with_the_reason(facts: Facts, wanted: str, because: str) -> None:
    choice = choose(facts, wanted)  # type: ignore[arg-type]
    assert choice.mode == (None if because else wanted)
    assert because in choice.because
    assert f"--cluster={wanted} was asked for" in choice.because


def test_a_cluster_of_the_users_is_never_taken_unasked() -> None:
    flags = (True, False)
    for linux, root, kind, docker in itertools.product(flags, flags, flags, ("", "no")):
        facts = Facts(linux, root, kind, docker, "/home/me/.kube/config")
        assert choose(facts, None).mode != "current"


def test_it_is_printed_and_the_exit_code_says_whether_there_is_one() -> None:
    script = Path(__file__).parents[3] / "e2e" / "clusters"
    codes = {}
    for mode in MODES:
        done = subprocess.run(
            [sys.executable, script, f"--cluster={mode}"],
            capture_output=True,
            text=True,
            timeout=60,
            env={"PATH": "/nonexistent"},
        )
        assert done.stdout.startswith(("e2e: nothing because", f"e2e: {mode} because")), done.stderr
        codes[mode] = done.returncode
    assert codes["kind"] == codes["current"] == NOTHING_POSSIBLE
    assert codes["machine"] in (0, NOTHING_POSSIBLE)
