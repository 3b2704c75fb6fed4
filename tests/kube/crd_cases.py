"""For each rule of the CRD a changed object that is just still accepted and one that is just refused."""

import copy
import json
from typing import Any

from crd_rules import EVERY, Rule

Object = dict[str, Any]
SHA = "sha256:" + "0" * 64
RESOURCES = {"cpu": 1, "memory": "1Gi", "gpu": 1, "custom": {"fpga": 1}}
SCALING = {
    "minReplicas": 0, "maxReplicas": 10000, "targetOngoingRequests": 1, "upscaleDelaySeconds": 1,
    "downscaleDelaySeconds": 1,
}  # fmt: skip
NOW = "2026-01-01T00:00:00Z"

# Every field of the schema is here at least once.
_FULL: Object = {
    "kind": "ServePipeline",
    "metadata": {"name": "full"},
    "spec": {
        "rayVersion": "2.60.0", "image": "image", "imagePullSecrets": [{"name": "a"}], "serviceAccountName": "a",
        "maxConcurrentUpgrades": 1, "progressDeadlineSeconds": 1, "historyLimit": 1,
        "graph": {
            "input": {"preprocessor": "a:b", "code": SHA},
            "response": {"postprocessor": "a:b", "code": SHA},
            "steps": [
                {"name": "call", "node": "full", "method": "m", "args": [1], "kwargs": {}, "timeout": "1s",
                 "retries": 1},
                {"name": "switch", "switch": {"on": 1, "cases": [{"when": 1, "then": 1}], "default": 1}},
                {"name": "split", "split": {"branches": [{"weight": 100, "then": 1}, {"weight": 0, "then": 1}],
                                            "on": 1}},
                {"name": "map", "map": {"over": 1, "each": 1, "concurrency": 1}},
                {"name": "fallback", "fallback": [1]},
                {"name": "first", "first": [1]},
            ],
            "output": 1,
        },
        "nodes": {
            "full": {
                "import": "a:b", "code": SHA, "args": [1], "kwargs": {}, "image": "image", "runtimeEnv": {},
                "env": [{"name": "A", "value": "v"}],
                "volumes": [{"name": "a", "mountPath": "/a", "source": {"emptyDir": {}}}],
                "nodeSelector": {"a": "b"}, "tolerations": [{}], "gpuResourceName": "a/b", "resources": RESOURCES,
                "replicas": 1, "maxOngoingRequests": 1, "maxQueuedRequests": 1, "idempotent": False,
                "accessLog": True, "drainSeconds": 1,
                "healthCheck": {"periodSeconds": 1, "timeoutSeconds": 1}, "progressDeadlineSeconds": 1,
                "upgrade": {
                    "strategy": "Canary", "steps": [{"weight": 1, "holdSeconds": 1}], "surge": "Full", "retryToken": "a"
                },
                "placement": "Dedicated",
            },
            "scaled": {"import": "a:b", "autoscaling": SCALING},
        },
        "ingress": {
            "autoscaling": SCALING, "resources": RESOURCES, "route": "/a", "service": {"type": "ClusterIP", "port": 1},
            "requestTimeoutSeconds": 1, "maxBodyBytes": 1, "maxOngoingRequests": 1,
            "accessLog": True, "grpc": {"port": 1},
            "from": [{"podSelector": {}}],
        },
        "monitoring": {"from": [{"podSelector": {}}]},
        "cluster": {
            "workers": {"minReplicas": 0, "maxReplicas": 10000, "resources": RESOURCES},
            "head": {"image": "image", "resources": RESOURCES}, "gcsFaultTolerance": {},
        },
    },
    "status": {
        "observedGeneration": 1, "installation": "i", "url": "u",
        "nodesReady": "1/1", "upgrading": "u", "graph": {"revision": "r"},
        "conditions": [{
            "type": "T", "status": "True", "reason": "R", "message": "m", "lastTransitionTime": NOW,
            "observedGeneration": 1,
        }],
        "clusters": [{"name": "c", "role": "Active", "message": "m"}],
        "deadlines": {"a--r": {"attempt": 0, "watchedSeconds": 1, "at": NOW}},
        "nodes": {"a": {
            "revision": "r", "placement": "Inline", "replicas": 1, "readyReplicas": 1, "state": "s", "message": "m",
            "candidate": {
                "revision": "r", "weight": 1, "step": 1, "since": NOW, "replicas": 1, "readyReplicas": 1, "reason": "r",
                "message": "m",
            },
            "failedRevision": {
                "revision": "r", "reason": "r", "message": "m", "attempts": 1, "at": NOW, "retryAt": NOW
            },
        }},
    },
}  # fmt: skip

FULL: Object = json.loads(json.dumps(_FULL))  # shares no part with itself

# What the API server says, by kind of rule.
SAYS = {
    "required": "Required value",
    "enum": "Unsupported value",
    "pattern": "should match",
    "format": "must be of type date-time",
    "minLength": "should be at least",
    "maxLength": "Too long|should be at most|may not be more than",
    "minItems": "should have at least",
    "maxItems": "Too many|must have at most",
    "minProperties": "should have at least",
    "maxProperties": "Too many|must have at most|should have at most",
    "minimum": "should be greater than or equal to",
    "maximum": "should be less than or equal to",
    "unique": "Duplicate value",
}  # fmt: skip

POOLS = (("spec", "nodes", EVERY), ("spec", "ingress"), ("spec", "cluster", "workers"), ("spec", "cluster", "head"))
AMOUNTS = (("cpu",), ("memory",), ("gpu",), ("custom", EVERY))
# The longest that the field's pattern allows, where that is shorter than maxLength.
PATTERN_IS_SHORTER = {
    ("spec", "graph", "steps", EVERY, "timeout"): "00001ms" * 4,
    **{(*pool, "resources", *amount): "111111111111111.000000001Ki" for pool in POOLS for amount in AMOUNTS},
}


def cases(rule: Rule) -> tuple[list[Object], Object, str]:
    """Objects that are accepted, one that is refused, and the field that the refusal names.

    Raises KeyError for a rule that nobody has written a case for.
    """
    base = FIXED if rule.path == INGRESS_REPLICAS else FULL
    where = place(base, rule.path)
    if rule.kind == "cel":
        accepted, refused = CEL[rule.path, rule.what]
        return [changed(accepted)], changed(refused), dotted(where)
    value = at(base, where)
    if rule.kind == "required":
        return [FULL], changed({(*where, rule.what): DROP}), dotted((*where, rule.what))
    fitting, wrong = _values(rule, value)
    field = dotted(where)
    if rule.kind == "unique":
        field = dotted((*where, len(wrong) - 1))
    good = [changed({where: each, **COMPANIONS.get((rule.path, rule.kind, _key(each)), {})}, base) for each in fitting]
    return good, changed({where: wrong}, base), field


def _values(rule: Rule, value: Any) -> tuple[list[Any], Any]:
    kind, what = rule.kind, rule.what
    if kind in ("minimum", "maximum"):
        return [what], what + (1 if kind == "maximum" else -1)
    if kind == "enum":
        return list(what), "Nonsense"
    if kind == "pattern":
        return [value], " :"
    if kind == "format":
        return [value], "yesterday"
    if kind == "maxLength" and rule.path in PATTERN_IS_SHORTER:
        return [PATTERN_IS_SHORTER[rule.path]], "1" * (what + 1)
    if kind.endswith("Length"):
        return [sized(value, what)], sized(value, what + (1 if kind == "maxLength" else -1))
    if kind == "unique":
        return [[value[0], {**value[0], what: "other"}]], [value[0], value[0]]
    more = what + (1 if kind.startswith("max") else -1)
    return [filled(value, what)], filled(value, more)


def sized(text: Any, length: int) -> str:
    """A string of this length that goes on as the text begins."""
    text = str(text)
    if text == NOW:
        return NOW[:-1] + "." + "0" * (length - len(NOW) - 1) + "Z"
    return (text + (text[-1] if text[-1].isalnum() else "a") * length)[:length]


def filled(value: Any, count: int) -> Any:
    """As many items or entries, each like the first, under a name of its own."""
    if isinstance(value, dict):
        first = next(iter(value.values()))
        names = [*value][:1] + [f"a{number}" for number in range(1, count)]
        return dict.fromkeys(names[:count], first)
    items = [copy.deepcopy(value[0]) for _ in range(count)]
    for number, item in enumerate(items[1:], 1):
        if isinstance(item, dict):
            for key in ("name", "type"):
                if key in item:
                    item[key] = f"a{number}"
            if "weight" in item and "then" in item:
                item["weight"] = 0
    return items


DROP = object()
S, N, B = ("spec",), ("spec", "nodes"), ("spec", "graph", "steps")
NODE = (*N, EVERY)
FULL_NODE = (*N, "full")
BRANCHES = (*B, 2, "split", "branches")
BARE = {FULL_NODE: {"import": "a:b", "placement": "Inline"}}

# What must change with a bound's value so that nothing else is wrong, by the value (or its length).
COMPANIONS: dict[tuple[Any, str, Any], dict[tuple[Any, ...], Any]] = {
    ((*B, EVERY, "split", "branches", EVERY, "weight"), "minimum", 0): {(*BRANCHES, 1, "weight"): 100},
    ((*B, EVERY, "node"), "maxLength", sized("full", 40)): {(*N, sized("full", 40)): {"import": "a:b"}},
    ((*NODE, "placement"), "enum", "Inline"): BARE,
    ((*NODE, "upgrade", "strategy"), "enum", "BlueGreen"): {(*FULL_NODE, "upgrade", "steps"): DROP},
    (("spec", "cluster", "workers", "minReplicas"), "maximum", 2147483647): {
        ("spec", "cluster", "workers", "maxReplicas"): DROP
    },
}


def _key(value: Any) -> Any:
    return len(value) if isinstance(value, list | dict) else value


Change = dict[tuple[Any, ...], Any]
SCALE = {"minReplicas": 2, "maxReplicas": 1}
# (path, message) -> changes that are accepted, changes that are refused
CEL: dict[tuple[tuple[str, ...], str], tuple[Change, Change]] = {
    ((), "metadata.name must have at most 44 lower case letters, digits and hyphens, a letter first: the names of the "
     "RayCluster and its Secret are made from it"): (
        {("metadata", "name"): "a" * 44}, {("metadata", "name"): "a" * 45}),
    (S, "a step calls a node that spec.nodes does not have"): ({(*B, 0, "node"): "scaled"}, {(*B, 0, "node"): "gone"}),
    (("spec", "graph"), "the names of steps must be unique"): ({(*B, 1, "name"): "call2"}, {(*B, 1, "name"): "call"}),
    ((*B, EVERY), "a step has one of node, switch, split, map, fallback, first"): (
        {}, {(*B, 0, "map"): {"over": 1, "each": 1}}),
    ((*B, EVERY), "method, kwargs, timeout and retries belong to a step with a node"): (
        {(*B, 0, "method"): DROP, (*B, 0, "node"): "scaled"}, {(*B, 0, "node"): DROP}),
    ((*B, EVERY, "split"), "the weights of the branches must sum to 100"): (
        {(*BRANCHES, 0, "weight"): 99, (*BRANCHES, 1, "weight"): 1}, {(*BRANCHES, 0, "weight"): 99}),
    (N, "a node's name has at most 40 lower case letters, digits and single hyphens, a letter first"): (
        {(*N, "a" * 40): {"import": "a:b"}}, {(*N, "a" * 41): {"import": "a:b"}}),
    (N, "reserved names: ingress, input, default"): (
        {(*N, "inputs"): {"import": "a:b"}}, {(*N, "input"): {"import": "a:b"}}),
    (NODE, "replicas and autoscaling exclude each other"): (
        {(*FULL_NODE, "replicas"): DROP}, {(*FULL_NODE, "autoscaling"): SCALING}),
    (NODE, "a node with placement Inline runs in the ingress process: it cannot have an image, env, runtimeEnv, "
     "resources, replicas, autoscaling or fields of a pod"): (BARE, {**BARE, (*FULL_NODE, "replicas"): 1}),
    ((*NODE, "autoscaling"), "minReplicas must not exceed maxReplicas"): (
        {(*N, "scaled", "autoscaling", "minReplicas"): 10000}, {(*N, "scaled", "autoscaling"): SCALE}),
    ((*NODE, "upgrade"), "steps belong to strategy Canary"): ({}, {(*FULL_NODE, "upgrade", "strategy"): "BlueGreen"}),
    ((*NODE, "upgrade"), "strategy Canary needs steps"): ({}, {(*FULL_NODE, "upgrade", "steps"): DROP}),
    (("spec", "ingress"), "replicas and autoscaling exclude each other"): (
        {("spec", "ingress", "autoscaling"): DROP, ("spec", "ingress", "replicas"): 1},
        {("spec", "ingress", "replicas"): 1}),
    (("spec", "ingress", "autoscaling"), "minReplicas must not exceed maxReplicas"): (
        {("spec", "ingress", "autoscaling", "minReplicas"): 10000}, {("spec", "ingress", "autoscaling"): SCALE}),
    (("spec", "cluster", "workers"), "minReplicas must not exceed maxReplicas"): (
        {("spec", "cluster", "workers", "minReplicas"): 10000}, {("spec", "cluster", "workers"): SCALE}),
}  # fmt: skip


def changed(changes: Change, base: Object | None = None) -> Object:
    """The base object with values put at, or dropped from, places."""
    result = copy.deepcopy(FULL if base is None else base)
    for where, value in changes.items():
        target: Any = at(result, where[:-1])
        if value is DROP:
            del target[where[-1]]
        else:
            target[where[-1]] = copy.deepcopy(value)
    return result


def at(obj: Any, where: tuple[Any, ...]) -> Any:
    for name in where:
        obj = obj[name]
    return obj


def place(obj: Any, path: tuple[str, ...]) -> tuple[Any, ...]:
    """Where in the object a schema's path first stands. Raises KeyError."""
    if not path:
        return ()
    head, rest = path[0], path[1:]
    names: list[Any] = [head]
    if head == EVERY:
        names = list(range(len(obj))) if isinstance(obj, list) else list(obj)
    for name in names:
        try:
            return (name, *place(obj[name], rest))
        except (KeyError, TypeError):
            continue
    raise KeyError(".".join(map(str, path)))


def dotted(where: tuple[Any, ...]) -> str:
    """As the API server writes it, without brackets."""
    return ".".join(map(str, where))


INGRESS_REPLICAS = ("spec", "ingress", "replicas")
# The one field that FULL cannot have: it excludes spec.ingress.autoscaling.
FIXED = changed({("spec", "ingress", "autoscaling"): DROP, INGRESS_REPLICAS: 1})
