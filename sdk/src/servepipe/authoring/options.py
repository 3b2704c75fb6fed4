"""Options of nodes and of the ingress: Ray's names or the resource's, turned into fields of the resource.

Both spellings are accepted because both are on people's minds: ``num_cpus=0.5`` from Ray and ``resources={"cpu":
"500m"}`` from Kubernetes mean the same, and the resource has one form only.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from typing import Any, TypeAlias

from servepipe.authoring.places import Place
from servepipe.errors import GraphError, ValueNotSupportedError
from servepipe.graph.fields import shown
from servepipe.graph.values import format_duration

__all__ = ["INGRESS", "NODE", "RAY", "STEP", "Fields", "did_you_mean", "merged", "node_fields", "step_options"]

Fields: TypeAlias = dict[str, Any]
"""Fields of a node or of the ingress as they stand in the resource, camelCase."""

_Rule: TypeAlias = Callable[[Any], Fields]


def _field(name: str) -> _Rule:
    return lambda value: {name: value}


def _nested(name: str, inner: str, convert: Callable[[Any], Any] = lambda value: value) -> _Rule:
    return lambda value: {name: {inner: convert(value)}}


def _quantity(value: Any) -> str:
    """A Kubernetes quantity: ``0.5`` becomes ``500m``; text stays as it is."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"expected a number or a quantity such as '500m', not {value!r}")
    if not 0 <= value < 2**63:  # also refuses nan
        raise ValueError(f"{shown(value)} is not an amount")
    if value == int(value):
        return str(int(value))
    thousandths = Decimal(repr(value)) * 1000
    if thousandths != int(thousandths):
        raise ValueError(f"{value!r} is finer than a thousandth")
    return f"{int(thousandths)}m"


def _bytes(value: Any) -> str:
    """Ray's memory in bytes as a quantity, in the largest binary unit that divides it."""
    if isinstance(value, str):
        return value
    text = _quantity(value)
    if text.endswith("m"):
        raise ValueError(f"expected a whole number of bytes, not {value!r}")
    for power, unit in ((4, "Ti"), (3, "Gi"), (2, "Mi"), (1, "Ki")):
        if int(text) and int(text) % 1024**power == 0:
            return f"{int(text) // 1024**power}{unit}"
    return text


def _resources(value: Any) -> Fields:
    """Ray's ``resources`` (custom ones by name) or the resource's own (cpu, memory, gpu, custom)."""
    if not isinstance(value, Mapping):
        raise ValueError(f"expected a dict, not {value!r}")
    own = {"cpu": _quantity, "memory": _bytes, "gpu": _quantity}
    if not own.keys().isdisjoint(value) or "custom" in value:
        for name in value:
            if name in _RAYS_OWN and name not in own:
                raise ValueError(f"{name!r} stands beside {', '.join(own)}. Write {name.lower()!r}")
            if name not in own and name != "custom":
                raise ValueError(f"{name!r} stands beside cpu, memory or gpu. Write custom={{{name!r}: ...}}")
        fields: Fields = {name: own[name](amount) for name, amount in value.items() if name in own}
        custom = value.get("custom", {})
    else:
        fields, custom = {}, value
    if not isinstance(custom, Mapping):
        raise ValueError(f"expected a dict of custom resources, not {custom!r}")
    for name in custom:
        if name in _RAYS_OWN:
            raise ValueError(f"{name!r} is not a custom resource. Write {_RAYS_OWN[name]}=...")
    if custom:
        fields["custom"] = {str(name): _quantity(amount) for name, amount in custom.items()}
    return {"resources": fields}


_RAYS_OWN = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory"}


def _replicas(value: Any) -> Fields:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"expected a whole number of replicas, 0 or more, not {value!r}; or give autoscaling={{...}}")
    return {"replicas": value}


def _env(value: Any) -> Fields:
    """Environment variables as the resource lists them, or as a dict."""
    if isinstance(value, Mapping):
        value = [{"name": name, "value": text} for name, text in value.items()]
    return {"env": value}


def _object(name: str, aliases: Mapping[str, str]) -> _Rule:
    """A dict option whose keys may be snake_case, camelCase or Ray's names."""

    def rule(value: Any) -> Fields:
        if not isinstance(value, Mapping):
            raise ValueError(f"expected a dict, not {value!r}")
        fields: Fields = {}
        for key, item in value.items():
            known = aliases.get(key, _camel(key))
            if known not in aliases.values():
                raise ValueError(f"unknown key {key!r}. {did_you_mean(key, aliases)}")
            fields[known] = item
        return {name: fields}

    return rule


def _camel(name: str) -> str:
    return re.sub(r"_([a-z0-9])", lambda match: match[1].upper(), name)


_AUTOSCALING = _object(
    "autoscaling",
    {
        "min_replicas": "minReplicas",
        "max_replicas": "maxReplicas",
        "target_ongoing_requests": "targetOngoingRequests",
        "upscale_delay_s": "upscaleDelaySeconds",
        "downscale_delay_s": "downscaleDelaySeconds",
        "upscale_delay_seconds": "upscaleDelaySeconds",
        "downscale_delay_seconds": "downscaleDelaySeconds",
    },
)
_HEALTH_CHECK = _object("healthCheck", {"period_seconds": "periodSeconds", "timeout_seconds": "timeoutSeconds"})

RAY: Mapping[str, _Rule] = {
    "num_cpus": _nested("resources", "cpu", _quantity),
    "num_gpus": _nested("resources", "gpu", _quantity),
    "memory": _nested("resources", "memory", _bytes),
    "resources": _resources,
    "runtime_env": _field("runtimeEnv"),
}
"""Options of ``ray.remote`` that the resource can express."""

_SHARED: Mapping[str, _Rule] = {
    **RAY,
    "num_replicas": _replicas,
    "replicas": _replicas,
    "autoscaling_config": _AUTOSCALING,
    "autoscaling": _AUTOSCALING,
    "max_ongoing_requests": _field("maxOngoingRequests"),
    "access_log": _field("accessLog"),
    "template": _field("template"),
}
NODE: Mapping[str, _Rule] = {
    **_SHARED,
    "max_queued_requests": _field("maxQueuedRequests"),
    "idempotent": _field("idempotent"),
    "user_config": _field("userConfig"),
    "graceful_shutdown_timeout_s": _field("drainSeconds"),
    "drain_seconds": _field("drainSeconds"),
    "health_check_period_s": _nested("healthCheck", "periodSeconds"),
    "health_check_timeout_s": _nested("healthCheck", "timeoutSeconds"),
    "health_check": _HEALTH_CHECK,
    "progress_deadline_seconds": _field("progressDeadlineSeconds"),
    "blocking": _field("blocking"),
    "image": _field("image"),
    "env": _env,
    "volumes": _field("volumes"),
    "node_selector": _field("nodeSelector"),
    "tolerations": _field("tolerations"),
    "gpu_resource_name": _field("gpuResourceName"),
    "placement": _field("placement"),
    "upgrade": _field("upgrade"),
}
"""Options of a node, beside its ``name``."""

INGRESS: Mapping[str, _Rule] = {
    **{name: rule for name, rule in _SHARED.items() if name != "runtime_env"},
    "route": _field("route"),
    "route_prefix": _field("route"),
    "service": _field("service"),
    "request_timeout_s": _field("requestTimeoutSeconds"),
    "request_timeout_seconds": _field("requestTimeoutSeconds"),
    "max_body_bytes": _field("maxBodyBytes"),
    "grpc": _field("grpc"),
}
"""Options of ``app.ingress``."""

STEP = ("name", "timeout", "retries")
"""Options of a step: its name, seconds that one attempt may take, further attempts after a failed one."""

_MERGED_FIELDS = ("resources", "healthCheck")
# Their keys are short for one thing each; the other objects (autoscaling, userConfig, ...) are replaced whole.


def node_fields(options: Mapping[str, Any], rules: Mapping[str, _Rule], owner: str, place: Place | str) -> Fields:
    """The resource fields that ``options`` stand for.

    Args:
        options: As the user wrote them.
        rules: `NODE`, `INGRESS` or `RAY`; camelCase spellings are accepted too.
        owner: Who takes these options, for errors.

    Raises:
        GraphError: An unknown option (with the closest known one), or a value that it cannot take.
    """
    fields: Fields = {}
    for option, value in options.items():
        rule = rules.get(option) or next((rule for name, rule in rules.items() if _camel(name) == option), None)
        if rule is None:
            raise _unknown(option, owner, rules, place)
        try:
            fields = merged(fields, rule(value))
        except ValueError as error:
            raise GraphError(f"{option} of {owner}: {error}", where=str(place)) from None
    return fields


def merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> Fields:
    """``old`` with ``new`` on top; a fixed number of replicas and autoscaling replace each other."""
    fields = dict(old)
    for name, value in new.items():
        if name in _MERGED_FIELDS and isinstance(value, Mapping):
            value = {**fields.get(name, {}), **value}
        fields[name] = value
    for one, other in (("replicas", "autoscaling"), ("autoscaling", "replicas")):
        if one in new:
            fields.pop(other, None)
    return fields


def step_options(options: Mapping[str, Any], owner: str, place: Place) -> dict[str, Any]:
    """The checked options of a step: ``name`` (str), ``timeout`` (seconds > 0), ``retries`` (int >= 0).

    Raises:
        GraphError: An unknown option or an impossible value.
    """
    for option, value in options.items():
        if option not in STEP:
            hint = (
                f"{option} belongs to the node: write it in .options(...) before .bind(...) of the class."
                if option in NODE
                else ""
            )
            raise _unknown(option, owner, STEP, place, hint)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if option == "name" and not isinstance(value, str):
            problem = "expected a str"
        elif option == "timeout" and not (number and 0.001 <= value < 3.6e8 and _is_duration(value)):
            problem = "expected seconds, 0.001 or more, in whole milliseconds"
        elif option == "retries" and not (number and isinstance(value, int) and 0 <= value <= 100):
            problem = "expected a whole number from 0 to 100"
        else:
            continue
        raise GraphError(f"{option} of {owner}: {problem}, not {value!r}", where=str(place))
    return dict(options)


def _is_duration(seconds: float) -> bool:
    try:
        return bool(format_duration(seconds))
    except ValueNotSupportedError:
        return False


def _unknown(option: str, owner: str, known: Iterable[str], place: Place | str, hint: str = "") -> GraphError:
    return GraphError(f"{owner} takes no option {option!r}", where=str(place), fix=hint or did_you_mean(option, known))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A sentence that names the closest of ``known``, or all of them."""
    options = list(known)
    close = difflib.get_close_matches(word, options, n=1)
    return f"Did you mean {close[0]!r}?" if close else f"Known: {', '.join(options)}."
