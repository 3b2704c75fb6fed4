"""A pipeline that is deleted leaves nothing, however often."""

from __future__ import annotations

import time
from collections.abc import Callable

from image_set import ImageSet
from resources import compiled
from world import World

Say = Callable[[str], None]
CYCLES = 20


def test_twenty_cycles_leave_nothing(world: World, images: ImageSet, say: Say) -> None:
    """Half of them are deleted when they serve, half in the middle of their start, and made again at once."""
    manifest = compiled("examples/diamond/diamond.py", images.diamond)
    before = world.left()
    seconds = []
    for cycle in range(CYCLES):
        begun = time.monotonic()
        world.apply(manifest)
        if cycle % 2:
            world.wait_for("diamond", "Available")
            seconds.append(time.monotonic() - begun)
        else:
            world.wait("its RayCluster", lambda: world.find("raycluster"), pipeline="diamond")
        world.kubectl("delete", "svp", "diamond", "--timeout=120s", timeout=130)
        if cycle % 5 == 4:
            say(f"e2e: {cycle + 1} of {CYCLES} cycles")
    # Far less than the grace period of workers, which serve on until their replicas run elsewhere.
    world.wait("nothing to be left", lambda: world.left() == before, 90)
    shortest, longest = min(seconds), max(seconds)
    say(f"e2e: {CYCLES} cycles; half of them were waited for: Available after {shortest:.0f} to {longest:.0f} s")
