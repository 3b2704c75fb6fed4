"""Which channel takes a call, how long to wait before another try, and which channels to open and close."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

__all__ = ["backoff", "choose", "differences"]

FIRST_WAIT_S = 0.05
LONGEST_WAIT_S = 5.0


class Loaded(Protocol):
    @property
    def in_flight(self) -> int: ...


L = TypeVar("L", bound=Loaded)
E = TypeVar("E")


def choose(channels: Sequence[L], rng: random.Random) -> L | None:
    """The less loaded of two that are drawn at random: near the best load, without a stampede on whoever is idle.

    None where there is no channel.
    """
    count = len(channels)
    if count < 2:
        return channels[0] if count else None
    first = int(rng.random() * count)
    second = int(rng.random() * (count - 1))
    if second >= first:
        second += 1
    one, other = channels[first], channels[second]
    return one if one.in_flight <= other.in_flight else other


def backoff(failures: int, rng: random.Random) -> float:
    """Seconds to wait after so many failures in a row (at least 1): doubling, with a random part so that callers of one
    replica do not come back together."""
    longest = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(failures - 1, 16))
    return longest * (0.5 + rng.random() / 2)


def differences(have: Mapping[str, E], want: Mapping[str, E]) -> tuple[dict[str, E], set[str]]:
    """What to open, and what to close first, to get from one set of replicas to another.

    A replica whose address has changed is in both.
    """
    open_ = {replica: endpoint for replica, endpoint in want.items() if have.get(replica) != endpoint}
    close = {replica for replica, endpoint in have.items() if want.get(replica) != endpoint}
    return open_, close
