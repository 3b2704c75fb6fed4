"""The small pure parts: revisions, Serve's configuration, what Serve's messages mean, history."""

from __future__ import annotations

import pytest

from servepipe.api.v1alpha1 import NodeSpec
from servepipe_operator.engine import history
from servepipe_operator.engine.conditions import Condition, merged
from servepipe_operator.engine.goal import Scale
from servepipe_operator.engine.health import headline, missing_resources, waits_for_room
from servepipe_operator.engine.history import Checkpoint, Failure, Unit
from servepipe_operator.engine.names import application, node_of, revision_of
from servepipe_operator.engine.revisions import canonical, digest, held_nodes, name_of, node_identity
from servepipe_operator.engine.rollout import backing_off, retry_at
from servepipe_operator.engine.serve_config import actor_options, bounds, demand, same
from servepipe_operator.engine.state import Application, Capacity, Environment, Record, Replica
from servepipe_operator.engine.times import seconds, timestamp


def identity(fields: dict, image: str | None = None, ignored: frozenset[str] = frozenset()) -> dict:
    return node_identity(NodeSpec.model_validate({"import": "m:C", **fields}), image, ignored)


# --- Revisions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {"args": []},
        {"kwargs": {}},
        {"replicas": 3},
        {"userConfig": {"a": 1}},
        {"upgrade": {"retryToken": "x"}},
        {"placement": "Dedicated"},
        {"maxOngoingRequests": 9, "drainSeconds": 5},
        {"resources": {}},
    ],
)
def test_live_fields_and_empty_ones_are_no_part_of_the_identity(fields: dict) -> None:
    assert identity(fields) == {"import": "m:C"}


@pytest.mark.parametrize(
    "fields",
    [
        {"args": [1]},
        {"kwargs": {"a": None}},
        {"code": f"sha256:{'0' * 64}"},
        {"image": "acme/m:1"},
        {"runtimeEnv": {"pip": ["x"]}},
        {"env": [{"name": "A", "value": "1"}]},
        {"resources": {"cpu": "2"}},
        {"blocking": False},
        {"template": {"spec": {}}},
    ],
)
def test_what_makes_another_model_is_part_of_it(fields: dict) -> None:
    assert identity(fields) != identity({})
    assert digest(identity(fields)) != digest(identity({}))


@pytest.mark.parametrize(("one", "other"), [("500m", "0.5"), ("2", "2000m"), ("1Gi", "1024Mi"), ("1.0", "1")])
def test_equal_amounts_are_the_same_revision(one: str, other: str) -> None:
    assert identity({"resources": {"cpu": one, "custom": {"x": one}}}) == identity(
        {"resources": {"cpu": other, "custom": {"x": other}}}
    )


def test_the_default_image_counts_where_a_node_has_none_and_images_mean_anything() -> None:
    assert identity({}, "acme/all:1")["image"] == "acme/all:1"
    assert identity({"image": "acme/m:1"}, "acme/all:1")["image"] == "acme/m:1"
    assert "image" not in identity({"image": "acme/m:1"}, "acme/all:1", frozenset({"image"}))


def test_a_known_identity_keeps_the_name_that_it_was_given() -> None:
    assert name_of({"import": "m:C"}, {"from-an-older-scheme": {"import": "m:C"}}) == "from-an-older-scheme"


def test_two_identities_never_share_a_name() -> None:
    name = name_of({"import": "m:C"}, {})

    other = name_of({"import": "m:C"}, {name: {"import": "m:D"}})

    assert other != name
    assert other.startswith(name)


def test_names_of_revisions_do_not_change_with_servepipes_version() -> None:
    """A change here restarts every pipeline that is upgraded: raise SCHEME instead, old names stay in history."""
    assert name_of({"import": "diamond:Model", "args": [1]}, {}) == "20c628a9"


def test_canonical_ignores_the_order_of_keys_and_keeps_text() -> None:
    assert (
        canonical({"b": "é", "a": [1.5, None]}) == canonical({"a": [1.5, None], "b": "é"}) == '{"a":[1.5,null],"b":"é"}'
    )


def test_held_nodes_are_found_wherever_they_stand() -> None:
    args = [
        {"$node": "a"},
        [{"$node": "b"}],
        {"k": {"$node": "c"}},
        {"$value": {"$node": "literal", "x": {"$node": "d"}}},
    ]

    assert held_nodes({"args": args, "kwargs": {"e": {"$node": "e"}}}) == {"a", "b", "c", "d", "e"}
    assert held_nodes({"args": [1, "x", {"$float": "1.0"}]}) == frozenset()


def test_application_names_can_be_taken_apart() -> None:
    assert (node_of(application("m-1", "ab")), revision_of(application("m-1", "ab"))) == ("m-1", "ab")
    assert revision_of("ingress") == ""


# --- Serve's configuration --------------------------------------------------------------------------------------------


def test_bounds_are_never_refused_by_serve() -> None:
    assert bounds(Scale(0, 0))["max_replicas"] == 1
    assert bounds(Scale(3, 3)) == {
        "min_replicas": 3,
        "max_replicas": 3,
        "target_ongoing_requests": 2,
        "upscale_delay_s": 30,
        "downscale_delay_s": 600,
    }


def test_resources_become_rays() -> None:
    found = actor_options(
        {
            "resources": {"cpu": "0.5", "memory": "1Gi", "gpu": "2", "custom": {"tpu": "4"}},
            "runtimeEnv": {"pip": ["x"]},
        },
        Environment(),
    )

    assert found == {
        "num_cpus": 0.5,
        "memory": 1024**3,
        "num_gpus": 2,
        "resources": {"tpu": 4},
        "runtime_env": {"pip": ["x"]},
    }


def test_gpus_can_be_left_out() -> None:
    environment = Environment(gpus_ignored=True)

    assert actor_options({"resources": {"gpu": "1"}}, environment) == {"num_cpus": 1}
    assert demand({"resources": {"gpu": "1", "cpu": "0"}}, environment) == {}


@pytest.mark.parametrize(
    ("wanted", "found", "expected"),
    [
        ({"a": 30}, {"a": 30.0}, True),
        ({"a": None}, {}, True),
        ({"a": 1}, {"a": 1, "b": None}, True),
        ({"a": 1}, {"a": 1, "b": 2}, False),
        ({"a": [1, 2]}, {"a": [1, 3]}, False),
        ({"a": [1]}, {"a": [1, 2]}, False),
        ({"a": "1"}, {"a": 1}, False),
        ({"a": 1}, None, False),
    ],
)
def test_same_sees_past_what_serve_rewrites_and_nothing_else(wanted: object, found: object, expected: bool) -> None:
    assert same(wanted, found) is expected


# --- Messages ---------------------------------------------------------------------------------------------------------

TRACEBACK = """Deploying app 'm1' failed with exception:
Traceback (most recent call last):
  File "serve.py", line 9, in build
    import_attr(path)
ModuleNotFoundError: No module named 'diamond'

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "app.py", line 1, in <module>
\x1b[36mray.exceptions.RayTaskError(ImportError)\x1b[39m: \x1b[36mray::build()\x1b[39m (pid=1)
  File "app.py", line 3, in node
    raise ImportError("broken")
servepipe.errors.ImportPathError: diamond:Model cannot be imported
  Install it.
"""


@pytest.mark.parametrize(
    ("message", "line"),
    [
        (TRACEBACK, "servepipe.errors.ImportPathError: diamond:Model cannot be imported"),
        ("one\ntwo", "one"),
        ("", "no message"),
        ('Traceback (most recent call last):\n  File "x", line 1\nKeyboardInterrupt', "KeyboardInterrupt"),
        ("x" * 400, "x" * 299 + "…"),
    ],
)
def test_the_headline_is_the_line_that_says_what_is_wrong(message: str, line: str) -> None:
    assert headline(message) == line


def test_half_a_surrogate_pair_is_nowhere_in_what_is_written() -> None:
    assert headline("ValueError: \ud800!") == "ValueError: ?!"
    (told,) = merged([Condition("Ready", "False", "NodesNotAnswering", "no replica: \udfff")], None, 0.0, 1)
    assert told["message"] == "no replica: ?"


def test_a_replica_without_a_process_waits_for_room() -> None:
    def app(pid: int | None, message: str = "") -> Application:
        return Application("m1", "DEPLOYING", replicas=(Replica("r", "STARTING", pid),), deployment_message=message)

    full = Capacity({"CPU": 4}, {"CPU": 0.5})
    assert waits_for_room(app(None), {"CPU": 1}, full)
    assert not waits_for_room(app(12), {"CPU": 1}, full)
    assert not waits_for_room(app(None), {"CPU": 0.5}, full)
    assert not waits_for_room(None, {"CPU": 1}, full)
    assert not waits_for_room(app(None), {"CPU": 1}, None)
    assert waits_for_room(app(None, "1 replicas that have taken more than 30s to be scheduled."), {"CPU": 1}, None)
    assert missing_resources({"CPU": 1, "GPU": 1}, full) == "CPU: 1 needed, 0.5 free of 4; GPU: 1 needed, 0 free of 0"


# --- History ----------------------------------------------------------------------------------------------------------


def test_a_checkpoint_comes_back_as_it_was_written() -> None:
    failed = Failure("b", "BuildFailed", "no", 2, 100.0, "token")
    checkpoint = Checkpoint(
        "spec", "graph", Unit("i", 1, "spec"), {"m1": Unit("a", 0, "spec", failed, failed)}, at=5.0, sequence=9
    )
    revisions = [
        history.revision_record("ingress--i", {"codes": []}, 1),
        history.revision_record("m1--a", {"import": "m:C"}, 1),
    ]

    memory = history.read([checkpoint.record(), *revisions, Record("checkpoint", "checkpoint", {}, 8)])

    assert memory.checkpoint == checkpoint
    assert memory.of_node("m1") == {"a": {"import": "m:C"}}


def test_history_is_bounded_and_keeps_what_is_in_use() -> None:
    def revisions(count: int) -> list[Record]:
        return [history.revision_record(f"m1--{index}", {}, index) for index in range(count)]

    specs = [history.spec_record(f"s{index}", {}, {}, index) for index in range(6)]
    graphs = [history.graph_record(f"g{index}", {}, index) for index in range(6)]
    checkpoints = [Checkpoint("s0", "g0", sequence=index).record() for index in range(6)]
    failed = Failure("1", "BuildFailed", "no", 1, 0.0)
    checkpoint = Checkpoint("s0", "g0", nodes={"m1": Unit("0", live="s1", failed=failed)}, sequence=5)

    pruned = history.prunable([*revisions(8), *specs, *graphs, *checkpoints], checkpoint, {"m1--2"}, limit=2)

    assert {(record.kind, record.name, record.sequence) for record in pruned} == {
        *(("node", f"m1--{index}", index) for index in (3, 4, 5)),
        *(("spec", f"s{index}", index) for index in (2, 3)),
        *(("graph", f"g{index}", index) for index in (1, 2, 3)),
        *(("checkpoint", "checkpoint", index) for index in range(4)),
    }


def test_waiting_times_double_up_to_an_hour() -> None:
    waits = [retry_at(Failure("b", "X", "", attempts, 0.0)) / 60 for attempts in (1, 2, 3, 4, 5, 6, 50)]

    assert waits == [5, 10, 20, 40, 60, 60, 60]
    unit = Unit("a", failed=Failure("b", "X", "", 1, 0.0, "t"))
    assert backing_off(unit, "b", "t", 299)
    assert not backing_off(unit, "b", "t", 300)
    assert not backing_off(unit, "b", "another", 0)
    assert not backing_off(unit, "c", "t", 0)


@pytest.mark.parametrize("text", ["yesterday", None, 7])
def test_a_time_that_is_none_is_not_read(text: object) -> None:
    assert seconds(text) is None


def test_times_are_whole_seconds() -> None:
    assert seconds(timestamp(1_700_000_000.9)) == 1_700_000_000
