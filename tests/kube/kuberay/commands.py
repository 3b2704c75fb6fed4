"""The ``ray start`` of a pod, from its group's parameters and resources and the limits of its first container. Pure."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from kuberay import names, quantity

Object = dict[str, Any]

#: bash reads the rest of a command from the first argument.
SHELL = ["/bin/bash", "-c", "--"]
AGENT_PORT = 52365
GPU = re.compile(r"gpu$|nvidia\.com/mig-\d+g\.\d+gb$")
#: Of other makers, by the name that Kubernetes knows: what Ray calls them.
ACCELERATORS = {"aws.amazon.com/neuroncore": "neuron_cores", "google.com/tpu": "TPU"}
#: Flags to which ``=true`` or ``=false`` is written; of all others, true is the bare flag and false none.
TAKE_A_VALUE = ("log-color", "include-dashboard", "include-log-monitor")
OPEN_FILES = "ulimit -n ${RAY_START_ULIMIT_OPEN_FILES:-65536}"
AUTOSCALER = "ray kuberay-autoscaler --cluster-name $(RAY_CLUSTER_NAME) --cluster-namespace $(RAY_CLUSTER_NAMESPACE)"
#: By what Ray calls a resource: the flag.
FLAGS = {"CPU": "num-cpus", "GPU": "num-gpus", "memory": "memory"}


def parameters(cluster: Object, group: Object, *, head: bool) -> dict[str, str]:
    """All flags of ``ray start``, without their dashes; what the group names itself wins."""
    given: dict[str, str] = group.get("rayStartParams") or {}
    found = {**given, **_of_resources(group.get("resources") or {})}
    if group.get("labels"):
        found["labels"] = ",".join(f"{key}={value}" for key, value in sorted(group["labels"].items()))
    if head:
        found.setdefault("dashboard-host", "0.0.0.0")
        if names.autoscaling(cluster):
            # The monitor that Ray would start cannot speak to Kubernetes; the container beside it does.
            found["no-monitor"] = "true"
        options = cluster["spec"].get("gcsFaultToleranceOptions") or {}
        for key, flag in {"redisUsername": "redis-username", "redisPassword": "redis-password"}.items():
            if options.get(key):
                found[flag] = "$" + flag.upper().replace("-", "_")
    else:
        found.setdefault("address", names.gcs_address(cluster))
    found.setdefault("metrics-export-port", str(names.METRICS_PORT))
    found.setdefault("dashboard-agent-listen-port", str(AGENT_PORT))
    found["block"] = "true"
    return _of_limits(found, _first(group).get("resources") or {})


def ray_start(found: Mapping[str, str], *, head: bool) -> str:
    """Args:
    found: See `parameters`.
    """
    words = ["ray start", *(["--head"] if head else [])]
    for key, value in sorted(found.items()):
        switch = value.lower() if key not in TAKE_A_VALUE else ""
        if switch not in ("true", "false"):
            words.append(f"--{key}={value}")
        elif switch == "true":
            words.append(f"--{key}")
    return " ".join(words)


def run(container: Object, started: str, *, overwritten: bool) -> None:
    """Makes a container run ``started``, after what its template runs, unless that starts Ray itself.

    Args:
        overwritten: The annotation ``ray.io/overwrite-container-cmd``: leave it to the template.
    """
    before = " ".join([*container.get("command", []), *container.get("args", [])])
    if overwritten or "ray start" in before:
        return
    wanted = f"{OPEN_FILES}; {started}"
    container["command"] = list(SHELL)
    container["args"] = [f"{before} && {wanted}" if before else wanted]


def wait_for_gcs(address: str) -> str:
    """Ends when the head answers; for two minutes why it does not is nobody's business."""
    return f"""\
asked="ray health-check --address {address}"
until if (( SECONDS <= 120 )); then $asked > /dev/null 2>&1; else $asked; fi; do
  echo "{address} does not answer after $SECONDS s"
  sleep 5
done
echo "{address} answers"
"""


def ray_resources(group: Object) -> dict[str, float]:
    """What one pod of a group offers to Ray: of its first container limits, overridden by what the group says."""
    flags = _of_limits(
        {**(group.get("rayStartParams") or {}), **_of_resources(group.get("resources") or {})},
        _first(group).get("resources") or {},
    )
    offered = {"CPU": 1.0, **{key: float(flags[flag]) for key, flag in FLAGS.items() if flag in flags}}
    return offered | _custom(flags)


def _of_resources(resources: Mapping[str, str]) -> dict[str, str]:
    """Flags for a group's ``resources``."""
    found, custom = {}, {}
    for name, written in resources.items():
        value = quantity.parse(written)
        key = "GPU" if GPU.search(name.lower()) else {"cpu": "CPU", "memory": "memory"}.get(name.lower())
        if key:
            found[FLAGS[key]] = str(math.ceil(value))
        else:
            custom[name] = float(value)
    return found | ({"resources": _quoted(custom)} if custom else {})


def _of_limits(found: dict[str, str], resources: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Flags completed from a container's resources; processors are counted in whole ones."""
    limits, requests = resources.get("limits") or {}, resources.get("requests") or {}
    cpu = quantity.parse(limits.get("cpu", 0)) or quantity.parse(requests.get("cpu", 0))
    if cpu:
        found.setdefault("num-cpus", str(math.ceil(cpu)))
    memory = quantity.parse(limits.get("memory", 0))
    if memory:
        found.setdefault("memory", str(math.ceil(memory)))
    custom = _custom(found)
    for name in sorted(name for name in limits if quantity.parse(limits[name])):
        if GPU.search(name):
            found.setdefault("num-gpus", str(math.ceil(quantity.parse(limits[name]))))
        elif name in ACCELERATORS and not custom.keys() & set(ACCELERATORS.values()):
            custom[ACCELERATORS[name]] = float(quantity.parse(limits[name]))
            found["resources"] = _quoted(custom)
    return found


def _custom(found: Mapping[str, str]) -> dict[str, float]:
    written = found.get("resources", "{}").strip("'\"` ").replace('\\"', '"')
    return {key: float(value) for key, value in json.loads(written).items()}


def _quoted(resources: Mapping[str, float]) -> str:
    """For the shell."""
    whole = {key: int(value) if value.is_integer() else value for key, value in sorted(resources.items())}
    return f"'{json.dumps(whole, separators=(',', ':'))}'"


def _first(group: Object) -> Object:
    container: Object = group["template"]["spec"]["containers"][0]
    return container
