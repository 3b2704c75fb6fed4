"""What runs now, read from Serve's own account of the configuration that it was given.

The position of an upgrade is not stored anywhere: it is read from the routing table that is deployed. So it is right
after a restart, after a lost status, and after somebody changed Serve behind the engine's back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from servepipe_operator.engine.health import alive, building
from servepipe_operator.engine.names import INGRESS, node_of
from servepipe_operator.engine.state import Application, Json, Observed, RoutingAck

__all__ = ["Deployed", "Route", "routes_of", "user_config"]


@dataclass(frozen=True, slots=True)
class Route:
    """One revision in a table. ``inline`` tells whether it lives in the ingress's process."""

    revision: str
    weight: int
    inline: bool


def user_config(config: Json | None) -> Json:
    """The ``user_config`` of an application's only deployment, or {}."""
    for deployment in (config or {}).get("deployments") or ():
        found = deployment.get("user_config")
        return found if isinstance(found, dict) else {}
    return {}


def routes_of(table: Json, node: str) -> tuple[Route, ...]:
    """The routes of ``node`` in an ingress's table; nothing for what is not a table."""
    try:
        return tuple(
            Route(route["revision"], int(route["weight"]), "inline" in route)
            for route in table["nodes"][node]["routes"]
        )
    except (KeyError, TypeError, ValueError):
        return ()


@dataclass(frozen=True, slots=True)
class Deployed:
    """What is deployed and acknowledged.

    Args:
        applications: Those deployed by a PUT and not on their way out, by name.
        table: The ingress's ``user_config``, or {}.
        settled: Every replica of the ingress and of every holder uses the table that it was given, and there is one.
        leaving: A replica of the ingress or of a holder is stopping; it may still have requests of an older table.
        ingress_is_leaving: The ingress was removed and finishes the requests that it took.
        busy: Requests in flight by application, or None when nobody could be asked.
        errors: Inline instances that could not be built and configurations that replicas refused, by
            ``<node>--<revision>`` or ``ingress``.
    """

    applications: Mapping[str, Application]
    table: Json
    settled: bool
    leaving: bool
    ingress_is_leaving: bool
    busy: Mapping[str, int] | None
    errors: Mapping[str, str]

    @classmethod
    def of(cls, observed: Observed) -> Deployed:
        applications = {
            name: application
            for name, application in observed.applications.items()
            if application.status != "DELETING" and application.config is not None
        }
        ingress = applications.get(INGRESS)
        table = user_config(ingress.config) if ingress else {}
        holders = [a for name, a in applications.items() if name != INGRESS and user_config(a.config).get("routes")]
        speakers = [*([ingress] if ingress else []), *holders]
        busy: dict[str, int] = {}
        errors: dict[str, str] = {}
        for ack in observed.acks or ():
            for name, count in ack.busy.items():
                busy[name] = busy.get(name, 0) + count
            errors |= ack.errors
        return cls(
            applications=applications,
            table=table,
            settled=ingress is not None
            and alive(ingress) > 0
            and observed.acks is not None
            and all(_acknowledged(speaker, observed.acks) for speaker in speakers),
            leaving=any(replica.state == "STOPPING" for speaker in speakers for replica in speaker.replicas),
            ingress_is_leaving=INGRESS in observed.applications and ingress is None,
            busy=None if observed.acks is None else busy,
            errors=errors,
        )

    @property
    def ingress_answers(self) -> bool:
        """Some replica of the ingress takes requests. While Serve builds the next one it shows none of those that there
        are; then it tells that one of them has acknowledged tables.
        """
        ingress = self.applications.get(INGRESS)
        return ingress is not None and (alive(ingress) > 0 or (building(ingress) and self.busy is not None))

    def route(self, node: str, revision: str) -> Route | None:
        """How the ingress's table names this revision."""
        return next((route for route in routes_of(self.table, node) if route.revision == revision), None)

    def args(self, application: str) -> Json:
        """The ``args`` that an application was deployed with."""
        found = self.applications.get(application)
        return dict((found.config or {}).get("args") or {}) if found else {}

    @property
    def ingress(self) -> str:
        """Revision of the ingress that was deployed last, or ``""``."""
        return str(self.args(INGRESS).get("revision", ""))

    def attempt(self, application: str) -> int:
        attempt = self.args(application).get("attempt", 0)
        return attempt if isinstance(attempt, int) else 0

    def of_node(self, node: str) -> list[str]:
        """The applications of a node, sorted."""
        return sorted(name for name in self.applications if node_of(name) == node and name != INGRESS)

    def called(self, application: str) -> bool:
        """The ingress's table sends requests to it."""
        node = node_of(application)
        return any(
            application == f"{node}--{route.revision}" and route.weight > 0 and not route.inline
            for route in routes_of(self.table, node)
        )


def _acknowledged(application: Application, acks: tuple[RoutingAck, ...]) -> bool:
    if building(application):
        return False
    table = user_config(application.config).get("table")
    tables = {ack.replica: ack.table for ack in acks if ack.application == application.name}
    return all(
        tables.get(replica.id) == table
        for replica in application.replicas
        if replica.state in ("RUNNING", "UPDATING", "PENDING_MIGRATION")
    )
