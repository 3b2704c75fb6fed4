"""Why replicas do not start: no room, or pods that do not come."""

from __future__ import annotations

import pytest

from servepipe_operator.engine.pools import Slot, slot_resource
from servepipe_operator.engine.room import Hindrance, hindrance
from servepipe_operator.engine.state import Application, Capacity, Replica

SLOW = "Deployment 'node' has 1 replicas that have taken more than 30s to be scheduled."


def app(pid: int | None = None, message: str = SLOW, slot: str = "m1-a") -> Application:
    config = {"deployments": [{"ray_actor_options": {"resources": {slot_resource(slot): 1}}}]}
    replicas = (Replica("r", "STARTING", pid),)
    return Application("m1--1", "DEPLOYING", config=config, deployment_message=message, replicas=replicas)


PULLING = Slot("m1-a", "m1", "c", pods=1, high=2, trouble="cannot pull its image")
PENDING = Slot("m1-a", "m1", "c", pods=1, high=2, trouble="0/3 nodes are available", unschedulable=True)


@pytest.mark.parametrize(
    ("application", "slots", "found"),
    [
        (None, [PULLING], None),
        (app(pid=7), [PULLING], None),
        # Serve takes it for a lack of room; the pod knows better, and a deadline counts.
        (app(), [PULLING], Hindrance("cannot pull its image", no_room=False)),
        (app(message=""), [PENDING], Hindrance("0/3 nodes are available", no_room=True)),
        (app(slot="m2-a"), [PENDING], Hindrance(SLOW, no_room=True)),
        (app(message=""), [Slot("m1-a", "m1", "c")], None),
        (app(), None, Hindrance(SLOW, no_room=True)),
    ],
)
def test_what_hinders(application: Application | None, slots: list[Slot] | None, found: Hindrance | None) -> None:
    assert hindrance(application, {"CPU": 1}, None, slots) == found


def test_a_group_at_its_maximum_is_named() -> None:
    found = hindrance(app(), {"CPU": 1}, None, [Slot("m1-a", "m1", "c", pods=2, high=2)])
    assert found is not None
    assert found.why == f"{SLOW}; worker group m1-a has all the 2 pods that it may have"


def test_what_ray_lacks_is_named() -> None:
    found = hindrance(app(), {"GPU": 1}, Capacity({"GPU": 1}, {}), [])
    assert found == Hindrance("GPU: 1 needed, 0 free of 1", no_room=True)
