"""Which flags a local Ray gets, and what is said about them."""

from __future__ import annotations

from typing import Any

import pytest

from servepipe.errors import RunError
from servepipe.runtime.flags import serve_environment
from servepipe_operator.local.flags import Flags, flags_of
from servepipe_operator.objects.environment import cluster_environment, environment_of
from servepipe_operator.objects.names import Owner
from servepipe_operator.objects.pods import head_template

THREAD, TUNED = "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD", "RAY_SERVE_THROUGHPUT_OPTIMIZED"
STATS = "RAY_SERVE_HAPROXY_STATS_PORT"
DEFAULTS = serve_environment(folder="/tmp/h", stats_port=8404)


def resource(*env: Any, **container: Any) -> dict[str, Any]:
    template = {"spec": {"containers": [{"name": "ray-head", "env": list(env), **container}]}}
    return {"spec": {"cluster": {"head": {"template": template}}}}


def variable(name: str, value: Any) -> dict[str, Any]:
    return {"name": name, "value": value}


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"cluster": None},
        {"cluster": {"workers": {"maxReplicas": 3}}},
        {"cluster": {"head": None}},
        {"cluster": {"head": {"template": {}}}},
        {"cluster": {"head": {"template": {"spec": 5}}}},
        {"cluster": {"head": {"template": {"spec": {"$null": True}}}}},
        {"cluster": {"head": {"template": {"spec": {"containers": 5}}}}},
        {
            "cluster": {
                "head": {"template": {"spec": {"containers": [{"name": "side", "env": [variable(TUNED, "0")]}]}}}
            }
        },
    ],
)
def test_without_a_word_about_them_the_defaults_count(spec: dict[str, Any]) -> None:
    flags = flags_of({"spec": spec})
    assert flags.over(DEFAULTS, {}) == DEFAULTS
    assert list(flags.notices(DEFAULTS, {})) == []


def test_the_template_of_the_head_says_here_what_it_says_in_pods() -> None:
    said = resource(
        variable(THREAD, "1"),
        variable("RAY_SERVE_OF_MINE", "x"),
        variable(TUNED, {"$null": True}),
        variable("SERVEPIPE_CHANNEL", "on"),
        variable("SERVEPIPE_CHANNEL", "off"),
        variable("RAY_gcs_server_request_timeout_seconds", "7"),
        variable("HTTP_PROXY", "http://proxy"),
    )
    values = flags_of(said).values
    assert values[THREAD] == "1" and "HTTP_PROXY" not in values
    head = head_template(Owner("p", "shop", "uid", "main"), said["spec"]["cluster"]["head"], "runtime:1", [])
    in_pods = environment_of(head)
    changed = {name for name, value in cluster_environment().items() if in_pods.get(name) != value}
    changed |= in_pods.keys() - cluster_environment()
    assert values == {name: in_pods.get(name) for name in changed}


def test_the_resource_counts_more_than_the_shell_and_the_shell_more_than_defaults() -> None:
    shell = {
        TUNED: "0",
        THREAD: "0",  # what servepipe says, too
        "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "9",
        "RAY_USAGE_STATS_ENABLED": "1",  # nothing that tunes: nobody is told anything
        STATS: "1",
        "HOME": "/h",
    }
    flags = Flags({"RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "5", "SERVEPIPE_CHANNEL": "off"})
    assert flags.over(DEFAULTS, shell) == DEFAULTS | {
        TUNED: "0",
        "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "5",
        "SERVEPIPE_CHANNEL": "off",
    }
    assert list(flags.notices(DEFAULTS, shell)) == [
        "spec.cluster.head.template sets RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE=5, SERVEPIPE_CHANNEL=off",
        f"the environment of this command sets {TUNED}=0",
    ]


def test_channels_that_the_shell_turns_off_are_named() -> None:
    shell = {"SERVEPIPE_CHANNEL": "off"}
    assert list(Flags({}).notices(DEFAULTS, shell)) == ["the environment of this command sets SERVEPIPE_CHANNEL=off"]
    on = Flags({"SERVEPIPE_CHANNEL": "on"})
    assert on.over(DEFAULTS, shell)["SERVEPIPE_CHANNEL"] == "on"
    assert list(on.notices(DEFAULTS, shell)) == ["spec.cluster.head.template sets SERVEPIPE_CHANNEL=on"]


def test_what_is_taken_out_is_so_whatever_the_shell_says() -> None:
    flags = flags_of(resource({"name": TUNED}))
    assert flags.over(DEFAULTS, {TUNED: "0"})[TUNED] is None
    assert list(flags.notices(DEFAULTS, {TUNED: "0"})) == [f"spec.cluster.head.template sets {TUNED} (taken out)"]


def test_files_and_ports_stay_the_runs_own() -> None:
    flags = flags_of(resource(variable(STATS, "1"), variable("RAY_SERVE_HAPROXY_BINARY_PATH", "/in/the/image")))
    assert flags.over(DEFAULTS, {}) == DEFAULTS
    [said] = flags.notices(DEFAULTS, {})
    assert said.endswith(
        f"files and ports of its own: RAY_SERVE_HAPROXY_BINARY_PATH, {STATS} of spec.cluster.head.template"
    )


def test_what_only_a_pod_can_read_is_named_once_and_left_out() -> None:
    secret = {"secretKeyRef": {"name": "s", "key": "k"}}
    others = [{"name": name, "valueFrom": secret} for name in ("RAY_SERVE_OF_MINE", TUNED, "PASSWORD")]
    flags = flags_of(resource(*others, variable(THREAD, "1")))
    assert flags.over(DEFAULTS, {}) == DEFAULTS | {THREAD: "1"}
    first, second = flags.notices(DEFAULTS, {})
    assert first == f"spec.cluster.head.template sets {THREAD}=1"
    assert second.endswith(f"(valueFrom): RAY_SERVE_OF_MINE, {TUNED} of spec.cluster.head.template")


def test_a_notice_is_one_line() -> None:
    name = "RAY_SERVE_HAPROXY_BALANCE_ALGORITHM"
    [said] = Flags({}).notices(DEFAULTS, {name: "random\n  option x"})
    assert said == f"the environment of this command sets {name}=random option x"


@pytest.mark.parametrize("value", [False, 0, 1.5, ["x"], {"a": "b"}])
def test_what_is_no_text_is_refused_as_a_cluster_does(value: Any) -> None:
    with pytest.raises(RunError, match=r"value of SERVEPIPE_CHANNEL is no text(.|\n)*in quotes"):
        flags_of(resource(variable("SERVEPIPE_CHANNEL", value)))
