from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from servepipe import __version__
from servepipe.runtime.flags import serve_environment

Run = Callable[..., Any]
Write = Callable[[str, str], Path]

OVERLAY = """
spec:
  imagePullSecrets: [{name: pull}]
  serviceAccountName: runner
  nodes:
    m1:
      replicas: 2
      resources: {cpu: 500m, memory: 1Gi, gpu: "0.5", custom: {slot: "1"}}
      env: [{name: MODE, value: fast}, {name: KEY, valueFrom: {secretKeyRef: {name: s, key: k}}}]
      runtimeEnv: {pip: [numpy], env_vars: {A: "1"}}
      userConfig: {threshold: 1}
      maxOngoingRequests: 3
      maxQueuedRequests: 9
      drainSeconds: 11
      healthCheck: {periodSeconds: 4, timeoutSeconds: 6}
      upgrade: {strategy: BlueGreen}
      nodeSelector: {zone: a}
      image: other:1
    m2: {autoscaling: {minReplicas: 1, maxReplicas: 4}}
  ingress: {replicas: 2, route: /diamond, requestTimeoutSeconds: 5, grpc: {}, template: {metadata: {labels: {a: b}}}}
  cluster:
    workers: {minReplicas: 2, maxReplicas: 3, resources: {cpu: "8", gpu: "0.5"}, template: {spec: {hostNetwork: true}}}
    head: {image: head:1}
"""


@pytest.fixture
def overlay(write: Write) -> Path:
    return write("overlay.yaml", OVERLAY)


def exported(run: Run, *arguments: str | Path) -> dict[str, Any]:
    ran = run("export", *arguments)
    assert ran.status == 0, ran.err
    content: dict[str, Any] = yaml.safe_load(ran.out)
    return content


def applications(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {application["name"].partition("--")[0]: application for application in config["applications"]}


def test_the_diamond_for_serve(run: Run, diamond: Path) -> None:
    config = exported(run, "serve", diamond)
    apps = applications(config)
    assert list(apps) == ["ingress", "m1", "m2"]
    assert config["http_options"] == {"host": "0.0.0.0", "port": 8000, "request_timeout_s": 70}
    assert "grpc_options" not in config
    names = {application["name"] for application in config["applications"]}
    table = apps["ingress"]["deployments"][0]["user_config"]
    routed = {node: f"{node}--{entry['routes'][0]['revision']}" for node, entry in table["nodes"].items()}
    assert names == {"ingress", routed["m1"], routed["m2"]}
    assert "inline" in table["nodes"]["ensemble"]["routes"][0]
    assert "inline" not in table["nodes"]["m1"]["routes"][0]
    assert apps["ingress"]["route_prefix"] == "/"
    assert "route_prefix" in apps["m1"] and apps["m1"]["route_prefix"] is None
    assert apps["m1"]["args"]["args"] == [1]
    assert apps["m1"]["args"]["import"] == "diamond:Model"
    assert apps["m1"]["args"]["code"].startswith("sha256:")
    assert apps["m1"]["deployments"][0]["num_replicas"] == 1
    assert "runtime_env" not in apps["m1"] and "runtime_env" not in apps["m1"]["deployments"][0]["ray_actor_options"]


def test_the_header_says_what_must_be_there(run: Run, diamond: Path) -> None:
    header = [line for line in run("export", "serve", diamond, "-o", "-").out.splitlines() if line.startswith("#")]
    assert header == [
        "# Written by `servepipe export serve` from the pipeline diamond.",
        f'# Needs on every node of the Ray cluster: pip install "servepipe[runtime]=={__version__}" (Ray 2.60.0)',
        "# Needs on the path of Ray's workers (PYTHONPATH where Ray is started): diamond",
        "# Run it with: serve deploy FILE",
    ]
    assert run("export", "serve", diamond, "-o", "serve.yaml").out == ""
    assert "# Run it with: serve deploy serve.yaml\n" in Path("serve.yaml").read_text()


def test_settings_of_nodes_and_ingress_reach_serve(run: Run, diamond: Path, overlay: Path) -> None:
    config = exported(run, "serve", diamond, "-f", overlay)
    apps = applications(config)
    assert list(apps) == ["ingress", "m1", "m2"]
    node = apps["m1"]["deployments"][0]
    assert node["num_replicas"] == 2
    assert node["ray_actor_options"] == {
        "num_cpus": 0.5,
        "memory": 2**30,
        "num_gpus": 0.5,
        "resources": {"slot": 1},
        "runtime_env": {"pip": ["numpy"], "env_vars": {"A": "1", "MODE": "fast"}},
    }
    assert (node["max_ongoing_requests"], node["max_queued_requests"]) == (3, 9)
    assert (node["graceful_shutdown_timeout_s"], node["health_check_period_s"], node["health_check_timeout_s"]) == (
        11,
        4,
        6,
    )
    assert node["user_config"]["userConfig"] == {"threshold": 1}
    assert apps["m2"]["deployments"][0]["autoscaling_config"]["max_replicas"] == 4
    assert "num_replicas" not in apps["m2"]["deployments"][0]
    ingress = apps["ingress"]
    assert ingress["route_prefix"] == "/diamond"
    assert ingress["deployments"][0]["num_replicas"] == 2
    inline = ingress["deployments"][0]["user_config"]["nodes"]["ensemble"]["routes"][0]["inline"]
    assert inline["import"] == "diamond:ensemble"
    assert ingress["args"]["codes"] == [inline["code"]]
    assert config["http_options"]["request_timeout_s"] == 15
    assert config["grpc_options"]["port"] == 9000


def test_what_has_no_place_in_the_file_is_said(run: Run, diamond: Path, overlay: Path) -> None:
    ran = run("export", "serve", diamond, "-f", overlay)
    left_out = [
        "spec.nodes.m1.nodeSelector",
        "spec.nodes.m1.upgrade",
        "spec.nodes.m1.image",
        "spec.nodes.m1.env[KEY]",
        "spec.ingress.template",
        "spec.cluster.workers.template",
    ]
    warned = [line.split()[1] for line in ran.err.splitlines() if line.startswith("warning: ")]
    written = [line.rpartition(" ")[2] for line in ran.out.splitlines() if line.startswith("# Left out")]
    assert warned == written == left_out


def test_a_node_that_is_off_has_no_replica_and_is_not_called(run: Run, write: Write, diamond: Path) -> None:
    write("off.yaml", "spec: {nodes: {m2: {replicas: 0}}}")
    apps = applications(exported(run, "serve", diamond, "-f", "off.yaml"))
    assert apps["m2"]["deployments"][0]["autoscaling_config"]["min_replicas"] == 0
    assert apps["ingress"]["deployments"][0]["user_config"]["nodes"]["m2"]["off"] is True


def test_a_node_that_must_not_see_a_call_twice_is_told_to_its_callers(run: Run, write: Write) -> None:
    write("holding.py", HOLDER)
    write("once.yaml", "spec: {nodes: {inner: {idempotent: false}}}")
    apps = applications(exported(run, "serve", "holding.py", "-f", "once.yaml"))
    nodes = apps["ingress"]["deployments"][0]["user_config"]["nodes"]
    assert nodes["inner"]["idempotent"] is False
    assert "idempotent" not in nodes["holder"]
    assert apps["holder"]["deployments"][0]["user_config"]["notIdempotent"] == ["inner"]
    assert "notIdempotent" not in apps["inner"]["deployments"][0]["user_config"]


HOLDER = """
from servepipe import ServeInputNode, build, remote

@remote
def inner(x): return x + 1

@remote
class Holder:
    def __init__(self, held): self.held = held
    async def run(self, x): return await self.held["inner"].remote(x)

with ServeInputNode() as request:
    inner_step = inner.bind(request[0])
    holder = Holder.bind({"inner": inner})
    answer = holder.run.bind(inner_step)

app = build(answer, name="holding")
"""


def test_what_a_node_with_replicas_holds_has_replicas_too(run: Run, write: Write) -> None:
    write("holding.py", HOLDER)
    apps = applications(exported(run, "serve", "holding.py"))
    assert set(apps) == {"ingress", "inner", "holder"}
    routes = apps["holder"]["deployments"][0]["user_config"]["routes"]
    assert routes == {"inner": [{"revision": apps["inner"]["args"]["revision"], "weight": 100}]}
    assert run("graph", "holding.py").out.count("calls") == 1


def test_a_working_dir_is_named_by_every_application(run: Run, diamond: Path) -> None:
    ran = run("export", "serve", diamond, "--working-dir", "s3://bucket/code.zip")
    config = yaml.safe_load(ran.out)
    assert all(app["runtime_env"] == {"working_dir": "s3://bucket/code.zip"} for app in config["applications"])
    assert "# Takes from s3://bucket/code.zip: diamond\n" in ran.out


def test_the_diamond_as_a_rayservice(run: Run, diamond: Path) -> None:
    service = exported(run, "rayservice", diamond, "--image", "acme/diamond:1")
    assert (service["apiVersion"], service["kind"], service["metadata"]) == (
        "ray.io/v1",
        "RayService",
        {"name": "diamond"},
    )
    assert yaml.safe_load(service["spec"]["serveConfigV2"]) == exported(
        run, "serve", diamond, "--image", "acme/diamond:1"
    )
    cluster = service["spec"]["rayClusterConfig"]
    assert cluster["rayVersion"] == "2.60.0"
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        (container,) = group["template"]["spec"]["containers"]
        assert container["image"] == "acme/diamond:1"
        assert {v["name"]: v["value"] for v in container["env"]} == serve_environment(haproxy=False, callback=False)
    (workers,) = cluster["workerGroupSpecs"]
    assert (workers["replicas"], workers["minReplicas"], workers["maxReplicas"]) == (1, 0, 10)


def test_the_cluster_of_a_rayservice_follows_the_resource(run: Run, diamond: Path, overlay: Path) -> None:
    ran = run("export", "rayservice", diamond, "-f", overlay, "--image", "acme/diamond:1")
    cluster = yaml.safe_load(ran.out)["spec"]["rayClusterConfig"]
    head, (workers,) = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    assert head["template"]["spec"]["containers"][0]["image"] == "head:1"
    assert (workers["replicas"], workers["minReplicas"], workers["maxReplicas"]) == (2, 2, 3)
    limits = {"cpu": "8", "memory": "16Gi", "nvidia.com/gpu": "1"}
    assert workers["template"]["spec"]["containers"][0]["resources"] == {"requests": limits, "limits": limits}
    for group in (head, workers):
        assert group["template"]["spec"]["imagePullSecrets"] == [{"name": "pull"}]
        assert group["template"]["spec"]["serviceAccountName"] == "runner"


def test_a_rayservice_needs_an_image(run: Run, diamond: Path) -> None:
    ran = run("export", "rayservice", diamond)
    assert ran.status == 2
    assert ran.err == (
        "error: a RayService needs an image\n  where: diamond.py\n  fix:   Pass --image IMG, or set spec.image.\n"
    )


def test_a_version_of_ray_that_the_resource_names(run: Run, diamond: Path, write: Write) -> None:
    write("version.yaml", 'spec: {rayVersion: "2.61.0"}')
    service = exported(run, "rayservice", diamond, "-f", "version.yaml", "--image", "i:1")
    assert service["spec"]["rayClusterConfig"]["rayVersion"] == "2.61.0"


def test_only_a_change_of_identity_gives_another_revision(run: Run, write: Write, diamond: Path) -> None:
    before = applications(exported(run, "serve", diamond))
    write("more.yaml", "spec: {nodes: {m1: {replicas: 3}, m2: {args: [7]}}}")
    after = applications(exported(run, "serve", diamond, "-f", "more.yaml"))
    assert before["m1"]["name"] == after["m1"]["name"]
    assert before["m2"]["name"] != after["m2"]["name"]
