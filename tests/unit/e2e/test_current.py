"""The user's own cluster is looked at before a test uses it, by their kubectl and in their environment."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from clusters.current import Current, CurrentError

KUBECTL = """#!/bin/sh
case "$*" in
  *" version "*) [ -z "{dead}" ] || {{ echo "the server is gone" >&2; exit 1; }};;
  *"--api-group=servepipe.dev"*) echo servepipelines.servepipe.dev;;
  *"--api-group=ray.io"*) echo rayjobs.ray.io; echo {rayclusters};;
  *"auth can-i create namespaces"*) [ -z "{confined}" ] || {{ echo no; exit 1; }};;
  *" get things "*) plugin-that-logs-in && echo '{{"items": [{{"home": "'"$HOME"'"}}]}}';;
esac
"""

Make = Callable[..., Current]


@pytest.fixture
def current(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    def make(dead: str = "", rayclusters: str = "rayclusters.ray.io", confined: str = "") -> Current:
        programs = tmp_path / "bin"
        programs.mkdir()
        kubectl = KUBECTL.format(dead=dead, rayclusters=rayclusters, confined=confined)
        for name, text in {"kubectl": kubectl, "plugin-that-logs-in": "#!/bin/sh\n"}.items():
            (programs / name).write_text(text)
            (programs / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
        monkeypatch.setenv("HOME", "/home/me")
        return Current(tmp_path / "config", {}, tmp_path)

    return make


def test_programs_run_as_the_user_would_run_them(current: Make) -> None:
    cluster = current()
    assert cluster.find("things", "-n", "shop") == [{"home": "/home/me"}]


@pytest.mark.parametrize(
    ("trouble", "told"),
    [
        ({"dead": "yes"}, r"KUBECONFIG=.*/config does not answer: the server is gone\nSee that `kubectl version`"),
        ({"rayclusters": ""}, r"has no rayclusters\.ray\.io: KubeRay's chart brings it"),
        ({"confined": "yes"}, "you may not create namespaces there"),
    ],
)
def test_one_that_cannot_be_used_says_why(current: Make, trouble: dict[str, str], told: str) -> None:
    with pytest.raises(CurrentError, match=told):
        current(**trouble)
