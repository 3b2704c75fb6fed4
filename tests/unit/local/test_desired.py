"""What a run is asked to be, change after change."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from small_pipeline import SMALL

from servepipe.errors import RunError, ServePipeError
from servepipe_operator.local.desired import Desired
from servepipe_operator.local.sources import Compiled

DOCUMENT = SMALL.replace("args: [1]", "args: [1], replicas: 1")
COMPILED = Compiled(DOCUMENT, "small", "/project", {"sha256:a": "/code/a"}, ())


@pytest.fixture
def desired(tmp_path: Path) -> Desired:
    desired = Desired(COMPILED, tmp_path / "resource.yaml", replicas_at_most=3)
    desired.start()
    return desired


def state(desired: Desired) -> tuple[int | None, object, dict[str, str]]:
    assert desired.pipeline.metadata.generation == desired.generation
    return desired.generation, desired.pipeline.spec.nodes["m1"].replicas, desired.code_paths


def changed(old: str, new: str) -> Compiled:
    return replace(COMPILED, document=DOCUMENT.replace(old, new), code_paths={"sha256:b": "/code/b"})


def test_what_was_scaled_stays_until_the_file_says_otherwise(desired: Desired) -> None:
    desired.scale("m1", 3)
    desired.apply(changed("args: [1]", "args: [2]"))
    assert state(desired) == (3, 3, {"sha256:a": "/code/a", "sha256:b": "/code/b"})
    desired.apply(changed("replicas: 1", "replicas: 2"))
    assert state(desired)[:2] == (4, 2)


def test_code_of_earlier_runs_is_known_and_the_latest_copy_wins(desired: Desired) -> None:
    desired.know_code({"sha256:old": "/code/old", "sha256:a": "/elsewhere"})
    assert desired.code_paths == {"sha256:old": "/code/old", "sha256:a": "/code/a"}


def test_what_is_refused_changes_nothing(desired: Desired) -> None:
    desired.scale("m1", 2)
    before = state(desired)
    with pytest.raises(RunError, match="what runs here is 'small'"):
        desired.apply(replace(COMPILED, pipeline="other"))
    with pytest.raises(ServePipeError, match="nowhere"):
        desired.apply(changed("{$step: m1-output}", "{$step: nowhere}"))
    with pytest.raises(ServePipeError, match="--replicas-at-most 3"):
        desired.scale("m1", 4)
    assert state(desired) == before


def test_a_disk_that_takes_nothing_changes_nothing(tmp_path: Path) -> None:
    desired = Desired(COMPILED, tmp_path / "resource.yaml", replicas_at_most=None)
    desired.start()
    (tmp_path / "resource.yaml").unlink()
    (tmp_path / "resource.yaml").mkdir()
    with pytest.raises(RunError, match="cannot be written") as caught:
        desired.scale("m1", 2)
    assert caught.value.where == str(tmp_path / "resource.yaml")
    assert state(desired)[:2] == (1, 1)


def test_the_route(desired: Desired) -> None:
    assert desired.route == "/"
    desired.apply(changed("  nodes:", "  ingress: {route: /api}\n  nodes:"))
    assert desired.route == "/api"


def test_grpc_is_offered_where_it_is_asked_for_and_settled_with_the_start(desired: Desired, tmp_path: Path) -> None:
    assert not desired.grpc
    asked = replace(COMPILED, document=DOCUMENT + "  ingress: {grpc: {}}\n")
    before = state(desired)
    with pytest.raises(RunError, match="settled when its Ray starts"):
        desired.apply(asked)
    assert state(desired) == before
    other = Desired(asked, tmp_path / "resource.yaml", replicas_at_most=3)
    assert other.grpc
    other.start()
    other.apply(asked)
    with pytest.raises(RunError, match="settled when its Ray starts"):
        other.apply(COMPILED)


def test_the_flags_of_ray_are_settled_with_the_start(desired: Desired, tmp_path: Path) -> None:
    def with_head(variable: str) -> Compiled:
        container = f"{{name: ray-head, env: [{variable}]}}"
        head = f"  cluster: {{head: {{resources: {{cpu: 2}}, template: {{spec: {{containers: [{container}]}}}}}}}}\n"
        return replace(COMPILED, document=DOCUMENT + head)

    off = with_head('{name: SERVEPIPE_CHANNEL, value: "off"}')
    before = state(desired)
    with pytest.raises(RunError, match="environment of Ray is settled"):
        desired.apply(off)
    assert state(desired) == before
    desired.apply(with_head("{name: HOME, value: /h}"))  # the head's own business, which there is none of here
    assert desired.generation == 2
    other = Desired(off, tmp_path / "resource.yaml", replicas_at_most=3)
    other.start()
    assert other.flags.values == {"SERVEPIPE_CHANNEL": "off"}
    other.apply(off)
    with pytest.raises(RunError, match="environment of Ray is settled"):
        other.apply(COMPILED)
