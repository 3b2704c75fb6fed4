"""Whether this process runs the servepipe and the Ray that its application was built with.

The builder (`servepipe.runtime.app`) runs in Ray's head, and each replica in an image of its own. What they hand to
each other, and replicas to replicas, is pickled and private to one version of servepipe: another one would fail in
ways that do not say why. Ray itself refuses workers with another Ray or another Python when they join; a
``runtimeEnv`` can still bring either into a single process.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ray

import servepipe
from servepipe.errors import RuntimeMismatchError

__all__ = ["RUNTIME", "built_with", "verify"]

#: The builder's versions, in the ``args`` of a replica.
RUNTIME = "runtime"
_HEAD = "node:__internal_head__"


def built_with(args: Mapping[str, Any]) -> dict[str, Any]:
    """``args`` with the versions of this process, if it runs in the head.

    Ray may build on another pod, with one node's own image: that proves nothing about the others.
    """
    return {**args, RUNTIME: _own()} if _in_head() else dict(args)


def verify(args: Mapping[str, Any]) -> None:
    """Raise `RuntimeMismatchError` where the head has other versions than this process."""
    expected, found = args.get(RUNTIME) or {}, _own()
    wrong = [name for name in found if name in expected and expected[name] != found[name]]
    if wrong:
        here, there = (" and ".join(f"{name} {versions[name]}" for name in wrong) for versions in (found, expected))
        raise RuntimeMismatchError(
            f"this replica has {here}, Ray's head has {there}: build its image on the runtime image of the head's "
            "version, and install neither by runtimeEnv"
        )


def _own() -> dict[str, str]:
    return {"servepipe": servepipe.__version__, "ray": ray.__version__}


def _in_head() -> bool:
    if not ray.is_initialized():
        return False
    here = ray.get_runtime_context().get_node_id()
    return any(node["NodeID"] == here and _HEAD in node["Resources"] for node in ray.nodes())
