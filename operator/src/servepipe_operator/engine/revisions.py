"""What makes two revisions the same, and what they are called.

A revision's identity holds only what the user wrote, normalised; never a default. So a default that changes in a new
version of servepipe restarts nothing. The name is a hash of the identity, but a revision that history already knows
under some name keeps it: the scheme of hashing may change too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from servepipe.api.quantity import parse_quantity
from servepipe.api.removals import unmarked
from servepipe.api.v1alpha1 import NodeSpec
from servepipe.graph.fields import Json

__all__ = ["SCHEME", "canonical", "digest", "held_nodes", "name_of", "node_identity", "normalised_resources"]

#: Version of the way in which identities are made and hashed.
SCHEME = 1

_LENGTH = 8


def canonical(value: Any) -> str:
    """One text for equal JSON values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest(value: Any, length: int = _LENGTH) -> str:
    """The first hexadecimal digits of the hash of a JSON value."""
    return hashlib.sha256(canonical(value).encode(errors="surrogatepass")).hexdigest()[:length]


def node_identity(node: NodeSpec, default_image: str | None, ignored: Iterable[str]) -> Json:
    """The identity of a node.

    Args:
        node: As in ``spec.nodes``.
        default_image: ``spec.image``.
        ignored: Fields that mean nothing here, so that changing them changes nothing.
    """
    identity = {key: value for key, value in node.identity().items() if value not in (None, [], {}, "")}
    if default_image:
        identity.setdefault("image", default_image)
    if template := identity.get("template"):
        identity["template"] = unmarked(template)
    if resources := identity.get("resources"):
        identity["resources"] = normalised_resources(resources)
    for key in ignored:
        identity.pop(key, None)
    return identity


def normalised_resources(resources: Mapping[str, Any]) -> Json:
    """One form for equal amounts, so that ``0.5`` in place of ``500m`` is no change."""
    return {
        key: normalised_resources(value) if isinstance(value, Mapping) else _plain(str(value))
        for key, value in resources.items()
        if value is not None
    }


def _plain(quantity: str) -> str:
    return format(parse_quantity(quantity).normalize(), "f")


def name_of(identity: Json, known: Mapping[str, Json]) -> str:
    """The name under which history knows ``identity``, else its hash.

    Args:
        known: Identities by name.
    """
    for name, other in known.items():
        if other == identity:
            return name
    name = digest({"scheme": SCHEME, "identity": identity})
    # Another identity under the same name would be served in place of this one.
    return name if name not in known else digest({"scheme": SCHEME, "identity": identity}, 2 * _LENGTH)


def held_nodes(identity: Mapping[str, Any]) -> frozenset[str]:
    """The nodes whose handles this revision's constructor is given."""
    return frozenset(_references([identity.get("args", []), identity.get("kwargs", {})]))


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        if set(value) == {"$node"}:
            yield value["$node"]
            return
        if set(value) == {"$value"} and isinstance(value["$value"], Mapping):
            # Its keys are literal: a key "$node" inside is the user's own.
            for item in value["$value"].values():
                yield from _references(item)
            return
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _references(item)
