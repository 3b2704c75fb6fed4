"""The API server's audit log, and the rights that it shows to have been used."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

Object = dict[str, Any]

READS = frozenset(("get", "list", "watch"))


class Right(NamedTuple):
    """What one entry of a Role's rules allows."""

    group: str
    resource: str
    subresource: str
    verb: str

    def __str__(self) -> str:
        resource = self.resource + (f".{self.group}" if self.group else "")
        return f"{self.verb} {resource}" + (f"/{self.subresource}" if self.subresource else "")


class AuditLog:
    """One JSON event a line. A request that was answered is in it; see the API server's flags."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def end(self) -> int:
        """Where the log ends now, for `events`."""
        return self.path.stat().st_size if self.path.exists() else 0

    def events(self, user: str | None = None, since: int = 0) -> list[Object]:
        """Of one user, if named (`system:serviceaccount:<namespace>:<name>`), after the place ``since``."""
        wanted = b"" if user is None else json.dumps(user).encode()
        found = []
        with self.path.open("rb") as file:
            file.seek(since)
            for line in file:
                # The last line may still be written. Most lines are of others, and reading them takes long.
                if not line.endswith(b"\n") or wanted not in line:
                    continue
                event = json.loads(line)
                if user is None or event["user"]["username"] == user:
                    found.append(event)
        return found


def writes(events: Iterable[Object]) -> list[Object]:
    """The requests that could have changed something; Leases and dry runs apart."""
    return [
        event
        for event in events
        if event["verb"] not in READS
        and (event.get("objectRef") or {}).get("resource") != "leases"
        and "dryRun=All" not in event["requestURI"]
    ]


def told(events: Iterable[Object]) -> list[str]:
    """For messages: a line for each request."""
    return [
        f"{event['verb']} {event['requestURI']} -> {(event.get('responseStatus') or {}).get('code')}"
        for event in events
    ]


def rights(events: Iterable[Object], *, refused: bool = False) -> set[Right]:
    """The rights that requests took; with ``refused`` those that were asked for and not there.

    Besides the verb that the log has, an apply that made a new object took the right to create it, and a child whose
    owner waits for it takes, on some clusters, that to the owner's finalizers; neither has a line of its own.
    """
    found: set[Right] = set()
    for event in events:
        what = event.get("objectRef")
        decision = (event.get("annotations") or {}).get("authorization.k8s.io/decision")
        if not what or decision != ("forbid" if refused else "allow"):
            continue
        right = Right(what.get("apiGroup", ""), what["resource"], what.get("subresource", ""), event["verb"])
        found.add(right)
        if right.verb == "patch" and not right.subresource and event["responseStatus"]["code"] == 201:
            found.add(right._replace(verb="create"))
        if right == CREATES_A_CHILD and event["responseStatus"]["code"] == 201:
            found.add(FINALIZERS)
    return found


def granted(rules: Iterable[Object]) -> set[Right]:
    """The rights of a Role's rules."""
    return {
        Right(group, resource.partition("/")[0], resource.partition("/")[2], verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


CREATES_A_CHILD = Right("ray.io", "rayclusters", "", "create")
#: Asked for by the admission plug-in OwnerReferencesPermissionEnforcement, which OpenShift has on. Here it is off: for
#: half a minute after its start such an API server refuses owners of kinds that it has not heard of yet.
FINALIZERS = Right("servepipe.dev", "servepipelines", "finalizers", "update")
