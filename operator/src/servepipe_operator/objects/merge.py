"""Merging a raw pod template into ours, as ``kubectl patch --type strategic`` does it.

Objects are merged field by field, null removes a field, and these lists are merged by the keys of their items; other
lists (tolerations, commands, arguments) are replaced whole. Items of ``env`` and ``volumes`` are one of several kinds,
so an item replaces the one with its name whole. Directives (``$patch``) are not offered. Nulls
come as nulls here (`servepipe.api.removals.unmarked`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from servepipe_operator.engine.state import Json

__all__ = ["merge_template", "template_problems"]

_KEYS: dict[str, tuple[str, ...]] = {
    "containers": ("name",),
    "initContainers": ("name",),
    "env": ("name",),
    "volumes": ("name",),
    "volumeMounts": ("mountPath",),
    "volumeDevices": ("devicePath",),
    "ports": ("containerPort", "protocol"),
    "imagePullSecrets": ("name",),
    "hostAliases": ("ip",),
    "resourceClaims": ("name",),
    "topologySpreadConstraints": ("topologyKey", "whenUnsatisfiable"),
}
_DEFAULTS = {"protocol": "TCP"}
_REPLACED_WHOLE = frozenset({"env", "volumes"})


def merge_template(base: Mapping[str, Any], template: Mapping[str, Any]) -> Json:
    """``base`` with ``template`` merged into it; neither is changed.

    Items that are new come behind those of ``base``: the first container stays the first, which KubeRay takes for Ray.
    """
    merged = dict(base)
    for key, value in template.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, Mapping):
            current = merged.get(key)
            merged[key] = merge_template(current if isinstance(current, Mapping) else {}, value)
        elif isinstance(value, list) and key in _KEYS:
            current = merged.get(key)
            merged[key] = _merged_list(current if isinstance(current, list) else [], value, key)
        else:
            merged[key] = _without_nulls(value)
    return merged


def _without_nulls(value: Any) -> Any:
    """What replaces a list whole has nothing of it that could be removed."""
    if isinstance(value, Mapping):
        return merge_template({}, value)
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def template_problems(template: Mapping[str, Any], path: str = "template") -> Iterator[str]:
    """What cannot be merged, each with where it stands."""
    for key, value in template.items():
        where = f"{path}.{key}"
        if key.startswith("$"):
            yield f"{where}: directives are not supported; {{$null: true}} removes a field"
        elif isinstance(value, Mapping):
            yield from template_problems(value, where)
        elif isinstance(value, list) and key in _KEYS:
            for index, item in enumerate(value):
                at = f"{where}[{index}]"
                missing = [name for name in _KEYS[key] if _key_part(item, name) is None]
                if missing:
                    yield f"{at}: needs {' and '.join(missing)}, by which it is merged"
                else:
                    yield from template_problems(item, at)


def _merged_list(current: list[Any], changes: list[Any], field: str) -> list[Any]:
    merged = list(current)
    for change in changes:
        key = _key(change, field)
        index = next((at for at, item in enumerate(merged) if key is not None and _key(item, field) == key), None)
        if index is not None:
            base = {} if field in _REPLACED_WHOLE else merged[index]
            merged[index] = merge_template(base, change)
        elif key is not None:
            merged.append(merge_template({}, change))
        elif change not in merged:
            merged.append(change)  # not an item: kept, so that the API server names it
    return merged


def _key(item: Any, field: str) -> tuple[Any, ...] | None:
    parts = tuple(_key_part(item, name) for name in _KEYS[field])
    return None if None in parts else parts


def _key_part(item: Any, name: str) -> Any:
    if not isinstance(item, Mapping):
        return None
    value = item.get(name)
    return _DEFAULTS.get(name) if value is None else value
