"""Which channel takes a call, and when another try is made."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from servepipe.channel.choice import LONGEST_WAIT_S, backoff, choose, differences
from servepipe.channel.endpoints import Endpoint


@dataclass(eq=False)
class Load:
    in_flight: int


def test_nobody_is_chosen_from_nobody():
    assert choose([], random.Random(1)) is None


@given(st.lists(st.integers(0, 9), min_size=2, max_size=6), st.integers(0, 1000))
def test_the_busiest_is_chosen_only_among_equals(loads, seed):
    channels = [Load(load) for load in loads]
    chosen = choose(channels, random.Random(seed))
    assert chosen in channels
    if loads.count(max(loads)) == 1:
        assert chosen.in_flight < max(loads)


def test_equal_channels_share_equally():
    channels = [Load(0) for _ in range(4)]
    rng = random.Random(7)
    drawn = Counter(channels.index(choose(channels, rng)) for _ in range(8000))
    assert all(1700 < count < 2300 for count in drawn.values())


def test_load_stays_level():
    channels = [Load(0) for _ in range(10)]
    rng = random.Random(3)
    for _ in range(10_000):
        choose(channels, rng).in_flight += 1
    assert max(channel.in_flight for channel in channels) < 1010


@given(st.integers(1, 10_000), st.integers(0, 100))
def test_waiting_grows_and_has_an_end(failures, seed):
    assert 0.025 <= backoff(failures, random.Random(seed)) <= LONGEST_WAIT_S
    if failures > 10:
        assert backoff(failures, random.Random(seed)) >= LONGEST_WAIT_S / 2


SETS = st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 2))


@given(SETS, SETS)
def test_differences_lead_from_one_set_to_the_other(have, want):
    new, gone = differences(have, want)
    kept = {key: value for key, value in have.items() if key not in gone}
    assert kept | new == want
    assert not kept.keys() & new.keys()


ENDPOINT = Endpoint("m1--a", "r1", b"secret", path="/run/x.sock", host="10.0.0.1", port=4711, machine="here", tls=True)


def test_an_endpoint_travels_as_plain_data():
    assert Endpoint.parse(ENDPOINT.encode()) == ENDPOINT


def test_what_is_no_endpoint_is_none():
    good = ENDPOINT.encode()
    for bad in (
        None,
        3,
        {},
        good | {"version": 2},
        good | {"more": 1},
        good | {"token": "xyz"},
        good | {"port": "1"},
        good | {"path": None},
        {key: value for key, value in good.items() if key != "replica"},
    ):
        assert Endpoint.parse(bad) is None


def test_the_way_depends_on_where_one_is():
    assert ENDPOINT.seen_from("here") == Endpoint("m1--a", "r1", b"secret", path="/run/x.sock", machine="here")
    assert ENDPOINT.seen_from("there") == Endpoint("m1--a", "r1", b"secret", host="10.0.0.1", port=4711, tls=True)
    assert Endpoint("a", "r", b"s", path="/x", machine="here").seen_from("there") is None


def test_the_token_is_not_in_logs():
    assert "secret" not in repr(ENDPOINT)
    assert b"secret".hex() not in repr(ENDPOINT)
