"""A new version of servepipe changes nothing about a pipeline that nobody changed: no name, no setting, no PUT.

When a test here fails, every pipeline that is running would be restarted or at least be sent a PUT by an upgrade of
servepipe. Where that is really meant, raise `revisions.SCHEME` (names that history knows stay) or write down in the
changelog what is sent, and then change the golden file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from simulated_world import World, node, resource

from servepipe.api.v1alpha1 import Autoscaling, HealthCheck, Ingress, NodeSpec, ServePipeline, Spec, Upgrade
from servepipe_operator.engine import defaults, history
from servepipe_operator.engine.history import Checkpoint, Failure, Unit
from servepipe_operator.engine.revisions import name_of, node_identity
from servepipe_operator.engine.state import Record

HERE = Path(__file__).parent
REVISIONS = json.loads((HERE / "golden_revisions.json").read_text(encoding="utf-8"))
CODE = f"sha256:{'1' * 64}"


# --- Names and what is sent -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", REVISIONS, ids=lambda row: row["revision"])
def test_revisions_keep_their_names(row: dict[str, Any]) -> None:
    identity = node_identity(NodeSpec.model_validate(row["node"]), row["image"], frozenset())

    assert name_of(identity, {}) == row["revision"]


def test_different_models_have_different_names() -> None:
    assert len({row["revision"] for row in REVISIONS}) == len(REVISIONS)


def representative() -> ServePipeline:
    return resource(
        {
            "plain": node("good"),
            "holder": node("good", {"$node": "plain"}, userConfig={"threshold": 2}, drainSeconds=7),
            "large": node("good", resources={"cpu": "500m", "memory": "1Gi"}, replicas=2, code=CODE),
            "elastic": node("good", autoscaling={"maxReplicas": 4}),
            "off": node("good", replicas=0),
            "f": {"import": "functions:f", "code": CODE, "placement": "Inline"},
        },
        preprocessor="hooks:one",
        ingress={"replicas": 2},
    )


def test_what_is_sent_stays_the_same() -> None:
    world = World()
    world.settle(representative())
    world.run(representative(), 60)
    _, sent = world.serve.puts[-1]

    assert sent == json.loads((HERE / "golden_put.json").read_text(encoding="utf-8"))


# --- Other defaults ---------------------------------------------------------------------------------------------------

#: The API of another version: each default that shows in what is sent or decided, and another value of it.
OTHER: dict[type[BaseModel], dict[str, Any]] = {
    Spec: {"max_concurrent_upgrades": 3, "progress_deadline_seconds": 77, "history_limit": 2},
    NodeSpec: {"max_ongoing_requests": 9, "max_queued_requests": 50, "drain_seconds": 11, "placement": "Inline"},
    Autoscaling: {
        "min_replicas": 2,
        "target_ongoing_requests": 5,
        "upscale_delay_seconds": 1,
        "downscale_delay_seconds": 2,
    },
    HealthCheck: {"period_seconds": 3, "timeout_seconds": 4},
    Upgrade: {"strategy": "Canary", "surge": "InPlace"},
    Ingress: {
        "route": "/other",
        "request_timeout_seconds": 99,
        "max_body_bytes": 5,
        "max_ongoing_requests": 6,
    },
}


class Api:
    """This process's API, whose defaults can be exchanged; `restore` puts the real ones back."""

    def __init__(self) -> None:
        self._real = {(model, name): model.model_fields[name].default for model in OTHER for name in OTHER[model]}

    def exchange(self) -> None:
        for model, fields in OTHER.items():
            for name, value in fields.items():
                model.model_fields[name].default = value
        self._rebuild()

    def restore(self) -> None:
        for (model, name), value in self._real.items():
            model.model_fields[name].default = value
        self._rebuild()

    @staticmethod
    def _rebuild() -> None:
        for model in (HealthCheck, Autoscaling, Upgrade, Ingress, NodeSpec, Spec, ServePipeline):
            model.model_rebuild(force=True)


@pytest.fixture
def api() -> Iterator[Api]:
    api = Api()
    yield api
    api.restore()


def test_every_default_that_matters_is_exchanged() -> None:
    exchanged = {(part.__name__, name) for part, fields in OTHER.items() for name in fields}
    models = {"spec": Spec, "node": NodeSpec, "autoscaling": Autoscaling, "healthCheck": HealthCheck}
    models |= {"upgrade": Upgrade, "ingress": Ingress}

    assert {
        (models[part].__name__, name)
        for part, fields in defaults.today().items()
        for name, field in models[part].model_fields.items()
        if (field.alias or name) in fields
    } == exchanged


def test_a_version_with_other_defaults_sends_nothing_and_restarts_nothing(api: Api) -> None:
    world = World()
    world.settle(representative())
    world.run(representative(), 60)
    before = {name: app.config for name, app in world.serve.applications.items()}
    status, puts = world.status, len(world.serve.puts)

    api.exchange()
    assert representative().spec.progress_deadline_seconds == 77
    world.run(representative(), 120)

    assert len(world.serve.puts) == puts
    assert {name: app.config for name, app in world.serve.applications.items()} == before
    assert world.status == status
    assert world.writes == []


def test_the_next_change_brings_the_new_defaults_in_place(api: Api) -> None:
    world = World()
    world.settle(resource({"m1": node("good"), "m2": node("good", placement="Dedicated")}))
    names = {name: world.node_applications(name) for name in ("m1", "m2")}
    api.exchange()
    changed = resource({name: node("good", replicas=2, placement="Dedicated") for name in ("m1", "m2")})

    world.settle(changed)

    assert {name: world.node_applications(name) for name in ("m1", "m2")} == names
    (m1,) = names["m1"]
    assert world.serve.applications[m1].deployment["max_ongoing_requests"] == 9


def test_an_upgrade_that_fails_under_new_defaults_leaves_the_old_ones_to_what_serves(api: Api) -> None:
    """Old live settings of code that is being replaced come from the spec that they were accepted with."""
    world = World()
    world.settle(resource({"m1": node("good", userConfig={"a": 1})}))
    (stable,) = world.node_applications("m1")
    api.exchange()
    upgrade = resource({"m1": node("crashes", userConfig={"b": 2}, placement="Dedicated")})

    world.run(upgrade, 60)

    assert world.node_applications("m1") == [stable]
    assert world.serve.applications[stable].deployment["user_config"]["userConfig"] == {"a": 1}


# --- Records of other versions ----------------------------------------------------------------------------------------


def test_defaults_that_this_version_does_not_have_are_left_out() -> None:
    spec = resource({"m1": node("good")}).spec
    other = defaults.today()
    other["node"] |= {"goneSince": 3, "drainSeconds": 5}
    other["gone"] = {"x": 1}
    del other["upgrade"]

    full = defaults.completed(spec, other)

    assert full.nodes["m1"].drain_seconds == 5
    assert defaults.completed(spec, None) is spec
    assert defaults.completed(spec, defaults.today()) is spec
    assert defaults.completed(spec, {"node": "nonsense"}).nodes["m1"].drain_seconds == 30


def test_records_of_specs_without_defaults_are_read() -> None:
    world = World()
    world.settle(pipeline := resource({"m1": node("good")}))
    for key, record in list(world.records.items()):
        if record.kind == "spec":
            world.records[key] = Record("spec", record.name, record.data["spec"], record.sequence)
    puts = len(world.serve.puts)

    world.run(pipeline, 30)

    assert len(world.serve.puts) == puts
    assert world.condition("Ready") == "True"


def test_a_failure_that_a_newer_version_wrote_is_read() -> None:
    failure = Failure("r", "ReplicaFailed", "no", 1, 5.0)
    record = Checkpoint("s", "g", nodes={"m1": Unit(failed=failure)}, sequence=1).record()
    record.data["nodes"]["m1"]["failed"]["verdict"] = {"new": True}

    checkpoint = history.read([record]).checkpoint

    assert checkpoint is not None
    assert checkpoint.unit("m1").failed == failure


def unreadable(world: World) -> None:
    """What a version with other fields left."""
    for key, record in list(world.records.items()):
        if record.kind == "spec":
            spec = {**record.data["spec"], "fieldOfAnotherVersion": 1}
            world.records[key] = Record("spec", record.name, {**record.data, "spec": spec}, record.sequence)


def test_an_accepted_spec_that_this_version_cannot_read_leaves_everything_running() -> None:
    world = World()
    world.settle(resource({"m1": node("good")}))
    puts = len(world.serve.puts)
    unreadable(world)
    invalid = resource({"m1": node("good")}, graph={"output": [{"$step": "nobody"}]})

    world.run(invalid, 30)

    assert len(world.serve.puts) == puts
    assert world.condition("Accepted") == "False"
    assert world.message("NodesReady") == "the last accepted spec cannot be read"
    assert world.condition("Available") == "True"  # the ingress says so itself
    world.settle(resource({"m1": node("good", "new")}))


def test_an_old_spec_that_this_version_cannot_read_does_not_stop_an_upgrade() -> None:
    world = World()
    world.settle(resource({"m1": node("good", userConfig={"a": 1})}))
    unreadable(world)

    world.settle(resource({"m1": node("good", "new")}))

    assert world.serve.problems == []
