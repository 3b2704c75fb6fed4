"""Which slot an application gets, over whole histories."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servepipe_operator.engine.pools import LETTERS, PodWish, Slot, Wanted, actor_resources, assign

V1, V2, V3, V4 = (PodWish("default", {"image": f"i:{n}"}) for n in range(1, 5))


def grown(slots: tuple[Slot, ...]) -> list[Slot]:
    return [replace(slot, replicas=1, pods=1) for slot in slots]


def test_applications_with_equal_pods_share_a_slot() -> None:
    made = assign([Wanted("m1--a", V1), Wanted("m2--b", V1, low=2, high=5)], [])
    assert made.of == {"m1--a": "default-a", "m2--b": "default-a"}
    assert [(slot.low, slot.high, slot.wish) for slot in made.slots] == [(2, 5, V1)]
    assert actor_resources("default-a") == {"svp-default-a": 1}


def test_a_pool_of_its_own_has_room_for_each_replica() -> None:
    wish = PodWish("m1", {"image": "own"})
    made = assign([Wanted("m1--a", wish, high=3), Wanted("m1--b", wish, high=2)], [])
    assert [(slot.name, slot.low, slot.high) for slot in made.slots] == [("m1-a", 0, 5)]


def test_a_new_image_goes_beside_the_one_in_use_then_waits() -> None:
    made = assign([Wanted("m1--a", V1)], [])
    wanted = [Wanted("m1--a", V1, "default-a"), Wanted("m1--b", V2), Wanted("m1--c", V3), Wanted("m1--d", V4)]
    made = assign(wanted, grown(made.slots))
    assert made.of == {"m1--a": "default-a", "m1--b": "default-b", "m1--c": "default-c"}
    assert made.waiting == ("m1--d",)


def test_only_an_idle_slot_is_rewritten() -> None:
    full = [Slot(f"default-{letter}", "default", "x", replicas=1, pods=1) for letter in LETTERS]
    for busy in (replace(full[1], replicas=0), replace(full[1], pods=0)):
        assert assign([Wanted("m1--a", V1)], [full[0], busy, full[2]]).waiting == ("m1--a",)
    made = assign([Wanted("m1--a", V1)], [full[0], replace(full[1], replicas=0, pods=0), full[2]])
    assert made.of == {"m1--a": "default-b"}
    assert [slot.wish for slot in made.slots] == [None, V1, None]


def test_an_empty_slot_that_an_application_asks_for_is_not_taken() -> None:
    live = [Slot("default-a", "default", V1.digest)]
    made = assign([Wanted("m1--b", V2), Wanted("m1--a", V1, "default-a")], live)
    assert made.of == {"m1--a": "default-a", "m1--b": "default-b"}


def test_slots_of_a_pool_that_is_gone_are_taken_over() -> None:
    wish = PodWish("m7", {"image": "own"})
    made = assign([Wanted("m7--a", wish)], [Slot("m1-a", "m1", "x")])
    assert [(slot.name, slot.pool) for slot in made.slots] == [("m1-a", "m7")]
    assert assign([], made.slots).slots[0].high == 0
    # Its old name's pool comes back: it takes another letter.
    back = assign([Wanted("m7--a", wish, "m1-a"), Wanted("m1--z", PodWish("m1", {"image": "z"}))], grown(made.slots))
    assert back.of["m1--z"] == "m1-b"


def test_a_pool_comes_back_when_others_have_all_its_slots() -> None:
    live = [Slot(f"m1-{letter}", "m7", "x", replicas=1, pods=1) for letter in LETTERS]
    assert assign([Wanted("m1--a", PodWish("m1", {"image": "own"}))], live).of == {"m1--a": "m1-d"}


@pytest.mark.parametrize("replicas", [0, 2])
def test_pods_that_are_there_are_not_ended(replicas: int) -> None:
    """Whatever the group asks for: KubeRay makes the fewest pods without saying so. Those that end do not count."""
    live = Slot("ingress-b", "ingress", "x", replicas=replicas, pods=2, ending=1, low=1, high=2)
    (slot,) = assign([], [live]).slots
    assert (slot.low, slot.high) == (0, 1)


@settings(max_examples=150)
@given(st.data())
def test_random_histories(data: st.DataObject) -> None:
    nodes = st.sampled_from(["m1", "m2", "m3"])
    live: list[Slot] = []
    running: dict[str, Wanted] = {}
    for step in range(data.draw(st.integers(1, 12))):
        for name in list(running):
            if data.draw(st.booleans()):
                del running[name]
        for _ in range(data.draw(st.integers(0, 3))):
            pool = data.draw(st.one_of(st.just("default"), nodes))
            wish = PodWish(pool, {"image": f"i:{data.draw(st.integers(0, 4))}"})
            running[f"{pool}--{step}-{len(running)}"] = Wanted(f"{pool}--{step}-{len(running)}", wish)
        # Autoscaling: what nothing asks for may have lost its pods, or not yet.
        used = {one.slot for one in running.values()}
        live = [
            slot if slot.name in used or data.draw(st.booleans()) else replace(slot, replicas=0, pods=0)
            for slot in live
        ]
        made = assign(list(running.values()), live)
        assert made == assign(list(running.values()), live)
        # Groups stay where they are, and nothing in use is rewritten.
        assert [slot.name for slot in made.slots[: len(live)]] == [slot.name for slot in live]
        for before, after in zip(live, made.slots, strict=False):
            assert after.contents == before.contents or (before.idle and before.name not in used)
        assert set(made.of) | set(made.waiting) == set(running)
        assert not set(made.of) & set(made.waiting)
        contents = {slot.name: slot for slot in made.slots}
        for name, one in running.items():
            if one.slot is not None:
                assert made.of[name] == one.slot
            if name in made.of:
                slot = contents[made.of[name]]
                assert (slot.pool, slot.contents) == (one.wish.pool, one.wish.digest)
        assert len(made.slots) <= len(LETTERS) * 4
        running = {name: replace(one, slot=made.of.get(name)) for name, one in running.items()}
        live = [
            replace(slot, replicas=1, pods=1) if slot.name in made.of.values() else replace(slot) for slot in made.slots
        ]
        again = assign(list(running.values()), live)
        assert (again.of, again.waiting) == (made.of, made.waiting)
        assert all(slot.wish is None for slot in again.slots)
    # When everything that drains is gone, nothing waits for ever.
    one = Wanted("m1--last", PodWish("m1", {"image": "last"}))
    assert not assign([one], [replace(slot, replicas=0, pods=0) for slot in live]).waiting
