"""What people read before and after a change: the difference, what stays, and who is in the way."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from servepipe import api
from servepipe.api.document import to_document
from servepipe.api.yaml_writer import write_yaml
from servepipe.errors import ServePipeError
from servepipe_operator.cluster.fields import MISSING, value_at
from servepipe_operator.cluster.merging import Kept
from servepipe_operator.engine.state import Json

__all__ = ["conflict", "difference", "foreign_lines", "kept_lines", "plain", "text_of"]

_CONFLICT = re.compile(r'^\.?(?P<field>.+?): conflict with "(?P<owner>[^"]*)"')
_SHOWN = 60
_SPREAD = frozenset({("spec",), ("spec", "graph"), ("spec", "graph", "steps"), ("spec", "nodes"), ("spec", "ingress")})


def plain(live: Mapping[str, Any]) -> Json:
    """An object without what only a cluster sets."""
    metadata = live.get("metadata") or {}
    kept = {key: metadata[key] for key in ("name", "namespace", "labels", "annotations") if metadata.get(key)}
    return {
        "apiVersion": live.get("apiVersion"),
        "kind": live.get("kind"),
        "metadata": kept,
        "spec": live.get("spec") or {},
    }


def text_of(resource: Mapping[str, Any] | None) -> str:
    """YAML with one field a line, "" for None; an object with fields that this version does not know keeps them."""
    if resource is None:
        return ""
    try:
        document = to_document(api.validate(plain(resource)))
        nodes = {("spec", "nodes", str(name)) for name in document["spec"]["nodes"]}
        return write_yaml(document, _SPREAD | nodes)
    except ServePipeError:
        import yaml

        text: str = yaml.safe_dump(plain(resource), sort_keys=True, allow_unicode=True)
        return text


def difference(old: Mapping[str, Any] | None, new: Mapping[str, Any], labels: tuple[str, str]) -> list[str]:
    """The lines of a unified diff, none where both mean the same.

    Args:
        old: The object as it is, None where there is none.
        new: As it will be.
        labels: What the two are called.
    """
    before, after = text_of(old).splitlines(), text_of(new).splitlines()
    return list(difflib.unified_diff(before, after, *labels, lineterm=""))


def kept_lines(kept: Iterable[Kept]) -> Iterator[str]:
    """One line for each field that stays as ops made it."""
    for one in kept:
        stays = "stays unset" if one.live is MISSING else f"stays {_shown(one.live)}"
        says = "" if one.file is MISSING else f"; the file says {_shown(one.file)}"
        yield f"{one.where} {stays}, set by {', '.join(one.owners)}{says}"


def foreign_lines(foreign: Iterable[tuple[str, tuple[str, ...]]]) -> Iterator[str]:
    """One line for each node that is not in the file and stays."""
    for name, owners in foreign:
        yield f"spec.nodes.{name} stays, added by {', '.join(owners) or 'somebody'}; the file does not have it"


def conflict(causes: Iterable[str], file: Json, live: Json | None) -> ServePipeError | None:
    """The error for fields that the file changes and another field manager holds; None where it is about others.

    Args:
        causes: What the API server named, each ``.spec.image: conflict with "kubectl-edit" using ...``.
    """
    lines = []
    for cause in causes:
        found = _CONFLICT.match(cause)
        if found is None:
            continue
        field, owner = found["field"], found["owner"]
        line = f"{field} is held by {owner}"
        path = tuple(field.split("."))
        mine, theirs = value_at(file, path), value_at(live, path)
        if mine is not MISSING and theirs is not MISSING:
            line += f": there {_shown(theirs)}, in the file {_shown(mine)}"
        lines.append(line)
    if not lines:
        return None
    count = "A field is" if len(lines) == 1 else f"{len(lines)} fields are"
    return ServePipeError(
        f"{count} in other hands; nothing was changed\n" + "\n".join(f"    {line}" for line in lines),
        fix="Leave them as they are there by changing the file, or let the file win: --take-ownership.",
    )


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
