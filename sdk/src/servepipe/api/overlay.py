"""Overlays: a small file per environment that is merged into a compiled resource.

An overlay is a piece of a ServePipeline: ``spec`` and what is different in it. Nodes are merged by name.

Precedence, the later wins: defaults; what compile wrote; overlays in the order given; options of the command line. What
somebody else manages in a cluster stays theirs when the result is applied.

- Objects are merged field by field; null removes a field. In a pod ``template`` a null that finds none stays there: it
  removes the field from the pods, as ``{$null: true}`` always does (`servepipe.api.removals`).
- ``env``, ``volumes`` and ``imagePullSecrets`` are merged by the name of their entries; other lists are replaced whole.
- ``kwargs``, ``userConfig`` and ``runtimeEnv`` are merged by their top-level keys; a value inside is replaced whole.
- ``replicas`` replaces ``autoscaling`` and the other way round, since they exclude each other.
- ``spec.graph`` is the author's and cannot be overlaid, nor can an overlay add a node.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from servepipe.api.document import validate
from servepipe.api.problem import InvalidResourceError, Problem
from servepipe.api.removals import is_removal
from servepipe.api.v1alpha1 import API_VERSION, KIND, ServePipeline
from servepipe.graph.fields import did_you_mean, shown
from servepipe.graph.values import at_key

__all__ = ["merge"]

_BY_NAME = frozenset({"env", "volumes", "imagePullSecrets"})
_BY_TOP_LEVEL_KEY = frozenset({"kwargs", "userConfig", "runtimeEnv"})
_EXCLUDING = {"replicas": "autoscaling", "autoscaling": "replicas"}
_SAME = {"apiVersion": API_VERSION, "kind": KIND}


def merge(resource: ServePipeline, overlay: Any) -> ServePipeline:
    """``resource`` with ``overlay`` merged into it.

    Args:
        overlay: JSON of the overlay, as `load_yaml` gives it. ``apiVersion`` and ``kind`` may be left out.

    Raises:
        InvalidResourceError: The overlay is not one, or the result is not a ServePipeline.
    """
    if not isinstance(overlay, Mapping):
        raise InvalidResourceError([Problem("", f"expected an overlay (an object with spec), not {shown(overlay)}")])
    document = resource.to_json()
    found = list(_misplaced(document, overlay))
    if found:
        raise InvalidResourceError(found)
    changes = {key: value for key, value in overlay.items() if key not in _SAME}
    return validate(_merged(document, changes))


def _misplaced(document: dict[str, Any], overlay: Mapping[str, Any]) -> list[Problem]:
    found = []
    for key, value in overlay.items():
        if key in _SAME and value != _SAME[key]:
            found.append(Problem(key, f"expected {_SAME[key]}, not {shown(value)}"))
        elif key not in (*_SAME, "metadata", "spec"):
            found.append(Problem("", f"unknown field {shown(key)}", did_you_mean(str(key), ["metadata", "spec"])))
    for key in ("metadata", "spec"):
        if key in overlay and not isinstance(overlay[key], dict):
            found.append(Problem(key, f"expected an object, not {shown(overlay[key])}"))
            return found
    spec = overlay.get("spec", {})
    if "graph" in spec:
        found.append(Problem("spec.graph", "an overlay cannot change the graph", "Change the Python, compile again."))
    nodes = spec.get("nodes", {})
    if not isinstance(nodes, dict):
        found.append(Problem("spec.nodes", f"expected an object, not {shown(nodes)}"))
        return found
    known = document["spec"]["nodes"]
    for name, node in nodes.items():
        path = at_key("spec.nodes", name)
        if name not in known:
            found.append(Problem(path, f"the pipeline has no node {name!r}", did_you_mean(name, known)))
        elif not isinstance(node, dict):
            found.append(Problem(path, f"expected an object, not {shown(node)}"))
    return found


def _merged(base: dict[str, Any], changes: Mapping[str, Any], in_template: bool = False) -> dict[str, Any]:
    result = dict(base)
    for key, change in changes.items():
        if change is None:
            if key in result:
                del result[key]
            elif in_template:
                result[key] = None
            continue
        excluded = _EXCLUDING.get(key, "")
        if excluded not in changes:  # an overlay that sets both contradicts itself, which validation says
            result.pop(excluded, None)
        current = result.get(key)
        if key in _BY_TOP_LEVEL_KEY and isinstance(current, dict) and isinstance(change, dict):
            result[key] = _merged_free_form(current, change)
        elif key in _BY_NAME and isinstance(current, list) and isinstance(change, list):
            result[key] = _merged_by_name(current, change)
        elif is_removal(current) or is_removal(change):
            result[key] = change
        elif isinstance(current, dict) and isinstance(change, dict):
            result[key] = _merged(current, change, in_template or key == "template")
        else:
            result[key] = change
    return result


def _merged_free_form(current: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    # An object with a "$" key is one value in its wire form, not fields.
    if any(key.startswith("$") for key in (*current, *change)):
        return change
    merged = current | change
    return {key: value for key, value in merged.items() if value is not None}


def _merged_by_name(current: list[Any], changes: list[Any]) -> list[Any]:
    merged = {item["name"]: item for item in current}
    for index, item in enumerate(changes):
        name = item.get("name") if isinstance(item, dict) else None
        if not isinstance(name, str):
            merged[f"{index}:"] = item  # not an entry: kept, so that validation names it
        elif name in merged and "value" not in item and "valueFrom" not in item:
            merged[name] = _merged(merged[name], item)
        else:
            merged[name] = item
    return list(merged.values())
