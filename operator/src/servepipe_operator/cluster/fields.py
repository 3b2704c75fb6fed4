"""Who set which field: reading, and handing over, what an object's ``metadata.managedFields`` says.

The API server keeps for each (manager, operation) a tree of keys: ``f:name`` for a field or the key of a map, ``k:``,
``v:`` and ``i:`` for items of lists, ``.`` for the thing itself. What server-side apply may change, and what it removes
when a file no longer names it, follows from this alone.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from servepipe_operator.engine.state import Json

__all__ = ["MISSING", "Path", "applied", "handed_over", "holders", "leaves", "value_at", "written"]

Path: TypeAlias = tuple[str, ...]

#: Stands for the value of a field that is not there.
MISSING: Any = type("Missing", (), {"__repr__": lambda self: "MISSING", "__bool__": lambda self: False})()


def holders(live: Mapping[str, Any], path: Path, *, apart_from: str = "") -> tuple[str, ...]:
    """The managers that hold the field at ``path`` or a part of it, by name.

    Args:
        live: The object as read.
        apart_from: A manager whose own applies do not count; what it did otherwise does.
    """
    found = {
        str(entry.get("manager", ""))
        for entry in _entries(live)
        if not _is_apply_of(entry, apart_from) and _at(entry.get("fieldsV1") or {}, path) is not None
    }
    return tuple(sorted(found))


def applied(live: Mapping[str, Any], path: Path, manager: str) -> bool:
    """Whether ``manager`` holds the field at ``path`` or a part of it by server-side apply."""
    return any(
        _is_apply_of(entry, manager) and _at(entry.get("fieldsV1") or {}, path) is not None for entry in _entries(live)
    )


def handed_over(live: Mapping[str, Any], paths: Sequence[Path], manager: str) -> list[Json]:
    """``metadata.managedFields`` in which ``manager`` alone holds what anybody holds at ``paths``.

    What it does not apply next is then removed from the object.
    """
    entries = [copy.deepcopy(dict(entry)) for entry in (live.get("metadata") or {}).get("managedFields") or ()]
    own = next((entry for entry in entries if _is_apply_of(entry, manager)), None)
    if own is None:
        own = {
            "manager": manager,
            "operation": "Apply",
            "apiVersion": str(live.get("apiVersion", "")),
            "fieldsType": "FieldsV1",
            "fieldsV1": {},
        }
        entries.append(own)
    for path in paths:
        for entry in entries:
            if entry is own or entry.get("subresource"):
                continue
            taken = _cut(entry.get("fieldsV1") or {}, path)
            if taken is not None:
                _plant(own["fieldsV1"], path, taken)
    return [entry for entry in entries if entry is own or entry.get("fieldsV1")]


def leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every value below objects with its path; lists are values."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from leaves(item, (*path, str(key)))
    else:
        yield path, value


def value_at(value: Any, path: Path) -> Any:
    """The value at ``path``, or `MISSING`."""
    for key in path:
        if not isinstance(value, Mapping) or key not in value:
            return MISSING
        value = value[key]
    return value


def written(path: Path) -> str:
    """A path as people and errors write it: ``spec.nodes.m1.replicas``."""
    return ".".join(path)


def _entries(live: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Those about the object itself, not about its status."""
    for entry in (live.get("metadata") or {}).get("managedFields") or ():
        if not entry.get("subresource"):
            yield entry


def _is_apply_of(entry: Mapping[str, Any], manager: str) -> bool:
    return bool(manager) and entry.get("manager") == manager and entry.get("operation") == "Apply"


def _at(tree: Any, path: Path) -> Any:
    """The subtree at ``path``, None where there is none."""
    for key in path:
        tree = tree.get(f"f:{key}") if isinstance(tree, Mapping) else None
        if tree is None:
            return None
    return tree


def _cut(tree: dict[str, Any], path: Path) -> Any:
    """Take the subtree at ``path`` out, and what is empty without it; returns it, or None."""
    key, *rest = (f"f:{part}" for part in path)
    if key not in tree:
        return None
    if not rest:
        return tree.pop(key)
    taken = _cut(tree[key], path[1:])
    if taken is not None and not tree[key]:
        del tree[key]
    return taken


def _plant(tree: dict[str, Any], path: Path, subtree: Mapping[str, Any]) -> None:
    for part in path:
        tree = tree.setdefault(f"f:{part}", {})
    _graft(tree, subtree)


def _graft(tree: dict[str, Any], subtree: Mapping[str, Any]) -> None:
    for key, below in subtree.items():
        _graft(tree.setdefault(key, {}), below)
