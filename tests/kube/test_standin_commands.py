"""What the stand-in's pods run, by itself: no cluster is needed. Whether KubeRay's do too, the contract suite asks."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from kuberay import commands, pods, redis_cleanup
from kuberay.samples import autoscaled, group, raycluster, template

Object = dict[str, Any]


def made(body: Object) -> Object:
    """As the API server has it."""
    body["metadata"] |= {"namespace": "n", "uid": "u"}
    return body


def flags(body: Object, of: Object, *, head: bool = False) -> dict[str, str]:
    return commands.parameters(made(body), of, head=head)


def test_a_switch_is_a_bare_flag_or_none() -> None:
    given = {"block": "true", "no-monitor": "false", "include-dashboard": "False", "num-cpus": "0"}
    assert commands.ray_start(given, head=True) == "ray start --head --block --include-dashboard=False --num-cpus=0"


def test_a_worker_starts_with_the_address_of_the_head_and_its_port() -> None:
    head = {"rayStartParams": {"port": "7000"}, "template": template()}
    found = flags(raycluster("c", headGroupSpec=head), group("g"))
    assert found["address"] == "c-head-svc.n.svc.cluster.local:7000"
    assert "--head" not in commands.ray_start(found, head=False)


@pytest.mark.parametrize(
    ("limits", "wanted"),
    [
        ({"cpu": "500m"}, {"num-cpus": "1"}),
        ({"cpu": "0", "memory": "0"}, {}),
        ({"memory": "1500M"}, {"memory": "1500000000"}),
        ({"amd.com/gpu": "2"}, {"num-gpus": "2"}),
        ({"nvidia.com/mig-2g.32gb": "1"}, {"num-gpus": "1"}),
        ({"google.com/tpu": "4"}, {"resources": """'{"TPU":4}'"""}),
    ],
)
def test_limits_become_flags(limits: dict[str, str], wanted: dict[str, str]) -> None:
    pod = template()
    pod["spec"]["containers"][0]["resources"] = {"limits": limits}
    found = flags(raycluster("c"), group("g", template=pod))
    assert {key: found[key] for key in ("num-cpus", "num-gpus", "memory", "resources") if key in found} == wanted


def test_resources_of_a_group_come_through_the_shell_as_json(tmp_path: Path) -> None:
    resources = {"svp-g": "10k", "half": "500m", "CPU": "3", "example.com/gpu": "1", "memory": "1Gi"}
    found = flags(raycluster("c"), group("g", resources=resources))
    assert (found["num-cpus"], found["num-gpus"], found["memory"]) == ("3", "1", str(1024**3))
    (written,) = [word for word in shlex.split(commands.ray_start(found, head=False)) if "--resources" in word]
    assert written == '--resources={"half":0.5,"svp-g":10000}'
    assert commands.ray_resources(group("g", resources=resources)) == {
        "CPU": 3.0,
        "GPU": 1.0,
        "memory": float(1024**3),
        "svp-g": 10000.0,
        "half": 0.5,
    }


def test_a_container_that_starts_ray_itself_is_left_alone() -> None:
    own = {"command": ["sh", "-c"], "args": ["ray start --head"]}
    for container, overwritten in ((own, False), ({"command": ["sleep"]}, True)):
        before = dict(container)
        commands.run(container, "ray start", overwritten=overwritten)
        assert container == before


def test_a_command_of_the_template_comes_first() -> None:
    container: Object = {"command": ["echo"], "args": ["a b"]}
    commands.run(container, "ray start --block", overwritten=False)
    assert container["args"] == [f"echo a b && {commands.OPEN_FILES}; ray start --block"]


def test_waiting_for_the_head_ends_with_its_first_answer(tmp_path: Path) -> None:
    """Run as the init container would: with a ray that answers at its second call, and a sleep of no time."""
    ray = tmp_path / "ray"
    ray.write_text(f'#!/bin/bash\necho "$@" >> {tmp_path}/asked\n[ $(wc -l < {tmp_path}/asked) -ge 2 ]\n')
    ray.chmod(0o755)
    script = "sleep() { :; }\n" + commands.wait_for_gcs("c-head-svc.n.svc.cluster.local:6379")
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = subprocess.run(
        [*commands.SHELL, script], env=environment, capture_output=True, text=True, timeout=30, check=True
    )
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked == ["health-check --address c-head-svc.n.svc.cluster.local:6379"] * 2
    assert "does not answer" in done.stdout


def test_redis_is_emptied_by_the_head_s_image_without_the_autoscaler() -> None:
    options = {"redisAddress": "redis:6379", "redisPassword": {"value": "p"}}
    job = redis_cleanup.job(made(autoscaled("c", gcsFaultToleranceOptions=options)))
    spec = job["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    env = {one["name"]: one.get("value") for one in container["env"]}
    assert (env["RAY_REDIS_ADDRESS"], env["REDIS_PASSWORD"]) == ("redis:6379", "p")
    assert env["RAY_external_storage_namespace"] == "u"
    assert "livenessProbe" not in container
    assert spec["restartPolicy"] == "Never"
    assert job["metadata"]["labels"]["ray.io/node-type"] == "redis-cleanup"
    compile(redis_cleanup.PROGRAM, "program", "exec")
    assert redis_cleanup.PROGRAM in container["args"][0]


def test_pods_share_nothing_with_their_template() -> None:
    body = made(autoscaled("c", group("g", 1)))
    before = repr(body)
    pods.head_pod(body, "h")
    pods.worker_pod(body, body["spec"]["workerGroupSpecs"][0], 0)
    assert repr(body) == before
