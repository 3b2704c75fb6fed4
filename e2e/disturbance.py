"""A pipeline that something breaks around, under load: what its callers see, and what its status says."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from callers import Seen
from resources import Shop
from world import Object, World, condition

Say = Callable[[str], None]
ORDER = {"kind": "plain"}
#: Of version one.
ANSWERS = [["tag one", 0, None]]


@dataclass
class Watched:
    """What status said while something was broken.

    Attributes:
        began: `time.monotonic` at the start.
        said: By condition, status and reason, beside what a healthy pipeline says: from when to when, in seconds.
    """

    began: float = field(default_factory=time.monotonic)
    said: dict[str, tuple[float, float]] = field(default_factory=dict)

    def look(self, conditions: Sequence[Object]) -> None:
        now = time.monotonic() - self.began
        for one in conditions:
            good = "False" if one["type"] in ("Stalled", "Reconciling") else "True"
            if one["status"] != good:
                text = f"{one['type']}={one['status']} {one.get('reason', '')}"
                self.said[text] = (self.said.get(text, (now, now))[0], now)

    def __str__(self) -> str:
        return ", ".join(f"{text} ({a:.0f}-{b:.0f} s)" for text, (a, b) in self.said.items()) or "as always"


@contextlib.contextmanager
def watched(world: World) -> Iterator[Watched]:
    """Reads status all the time while the block runs."""
    found, ended = Watched(), threading.Event()

    def read() -> None:
        while not ended.is_set():
            with contextlib.suppress(AssertionError):
                found.look(world.pipeline("shop").get("status", {}).get("conditions", []))
            ended.wait(0.5)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()


def disturbed(shop: Shop, say: Say, what: str, disturb: Callable[[], object], *, loses: bool = True) -> Seen:
    """Disturbs the shop under load, waits until it is well again, and prints what was seen.

    Args:
        loses: Replicas are lost by it: it is well when there are as many as before, and some of them are others.
    """
    world = shop.world
    before = world.replicas("shop")

    def well() -> bool:
        live = world.pipeline("shop")
        available, reconciling = condition(live, "Available"), condition(live, "Reconciling")
        assert available.get("status") == "True", available
        assert not reconciling, reconciling
        now = world.replicas("shop")
        assert sizes(now) == sizes(before), (sizes(now), sizes(before))
        others = {node: (ids, now[node]) for node, ids in before.items() if now[node] != ids}
        assert bool(others) is loses, others
        return True

    with watched(world) as status, shop.callers(ORDER, ANSWERS) as callers:
        begun = time.monotonic()
        disturb()
        world.wait(f"the shop to be well again after: {what}", well, 400, "shop")
        took = time.monotonic() - begun
        so_far = callers.wait_for_more(40)
        seen = callers.wait_for_more(100)
    say(f"e2e: {what}: well after {took:.0f} s; callers: {seen}; status: {status}")
    assert len(seen.failures) == len(so_far.failures), "requests failed after status said that all is well"
    return seen


def sizes(replicas: Mapping[str, Collection[str]]) -> dict[str, int]:
    return {node: len(ids) for node, ids in replicas.items()}


def kill_head(shop: Shop, say: Say, what: str, *, loses: bool) -> Seen:
    head = shop.world.head("shop")
    name = head["metadata"]["name"]
    kill = ("delete", "pod", name, "--grace-period=0", "--force")
    return disturbed(shop, say, what, lambda: shop.world.kubectl(*kill), loses=loses)
