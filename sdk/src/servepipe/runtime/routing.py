"""Which revision of a node answers a request.

A request draws one revision for each node when it arrives, its *pins*, and keeps them until it ends, also inside nodes
that call other nodes: it never sees two revisions of one node. A new table counts for requests that arrive after it.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from servepipe.errors import NotReadyError

__all__ = ["InFlight", "Pins", "Places", "Routes", "application_name", "not_ready"]

#: From this percentage on a revision answers for its node.
_MOST = 50


def application_name(node: str, revision: str) -> str:
    """The Serve application that runs ``revision`` of ``node``."""
    return f"{node}--{revision}"


class Pins:
    """One choice of a revision for each node. Requests that drew the same share the object, which counts them."""

    __slots__ = ("busy", "revisions")

    def __init__(self, revisions: Mapping[str, str]) -> None:
        self.revisions = revisions
        self.busy = 0


class Routes:
    """Weighted revisions of nodes: ``{"m1": [{"revision": "…", "weight": 100}]}``. Nodes without any are left out."""

    def __init__(self, routes: Mapping[str, Iterable[Mapping[str, Any]]]) -> None:
        self._fixed: dict[str, str] = {}
        self._split: list[tuple[str, list[str], list[int]]] = []
        for node, choices in routes.items():
            weighted = [(route["revision"], int(route["weight"])) for route in choices if int(route["weight"]) > 0]
            if len(weighted) == 1:
                self._fixed[node] = weighted[0][0]
            elif weighted:
                revisions, weights = zip(*weighted, strict=True)
                self._split.append((node, list(revisions), list(itertools.accumulate(weights))))
        self._drawn: dict[tuple[str, ...], Pins] = {}
        self._always = None if self._split else Pins(self._fixed)

    def draw(self) -> Pins:
        """The pins of a new request, by weight."""
        if self._always is not None:
            return self._always
        drawn = tuple(random.choices(revisions, cum_weights=total)[0] for _, revisions, total in self._split)
        pins = self._drawn.get(drawn)
        if pins is None:
            chosen = {node: revision for (node, _, _), revision in zip(self._split, drawn, strict=True)}
            pins = self._drawn[drawn] = Pins(self._fixed | chosen)
        return pins


class Places:
    """Where the revisions of a table run, and what readiness has to ask of them.

    Args:
        nodes: As in the ingress's ``user_config``: ``{"m1": {"routes": [{"revision", "weight", "inline"?}], "off"?}}``.

    Attributes:
        inline: By application what runs in this process: its node, and what it is built from.
        dedicated: The applications with replicas of their own.
        off: Nodes that are at zero by choice.
        inline_nodes: By node the application that answers here for most of its requests.
        dedicated_nodes: By node the revisions with their weights that replicas have to answer for. One whose weight
            lies nowhere is among them: nothing could answer, so it is not ready.
    """

    def __init__(self, nodes: Mapping[str, Mapping[str, Any]]) -> None:
        self.inline: dict[str, tuple[str, Mapping[str, Any]]] = {}
        self.dedicated: set[str] = set()
        self.off = frozenset(name for name, node in nodes.items() if node.get("off"))
        self.inline_nodes: dict[str, str] = {}
        self.dedicated_nodes: dict[str, list[tuple[str, int]]] = {name: [] for name in nodes}
        for name, node in nodes.items():
            for route in node["routes"]:
                application, weight = application_name(name, route["revision"]), int(route["weight"])
                if "inline" in route:
                    self.inline[application] = (name, route["inline"])
                    if weight >= _MOST:
                        self.inline_nodes[name] = application
                else:
                    self.dedicated.add(application)
                    self.dedicated_nodes[name].append((route["revision"], weight))
        for name in {*self.inline_nodes, *self.off}:
            del self.dedicated_nodes[name]


class InFlight:
    """The requests under way, counted by the pins that they drew. Lives on one event loop."""

    def __init__(self) -> None:
        self._busy: set[Pins] = set()

    def begin(self, pins: Pins) -> None:
        """A request has drawn ``pins``."""
        if not pins.busy:
            self._busy.add(pins)
        pins.busy += 1

    def end(self, pins: Pins) -> None:
        """It has been answered."""
        pins.busy -= 1
        if not pins.busy:
            self._busy.discard(pins)

    def by_application(self) -> dict[str, int]:
        """How many requests under way may call each application; applications that none may call are left out."""
        total: Counter[str] = Counter()
        for pins in self._busy:
            for node, revision in pins.revisions.items():
                total[application_name(node, revision)] += pins.busy
        return dict(total)


def not_ready(node: str, why: str, *, code: str = "NotReady", fix: str = "") -> NotReadyError:
    """A 503 about ``node``."""
    return NotReadyError(f"node {node} {why}", code=code, fix=fix, node=node)
