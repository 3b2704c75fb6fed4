"""Who is compared with whom, as data: how each is called and which system it runs on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["CONTESTANTS", "SYSTEMS", "Contestant", "is_ours"]


@dataclass(frozen=True)
class Contestant:
    """One way to serve a graph.

    Args:
        name: In results and in ``--only``.
        title: For people.
        system: What must be up; contestants of one system share it. See `SYSTEMS`.
        application: In a Serve that is written by hand: which module of ``peers`` builds it, as ``module`` or
            ``module:suffix`` where the graph has variants. Its name is its route.
        ours: Whether it is servepipe.
    """

    name: str
    title: str
    system: str
    application: str = ""
    ours: bool = False


SYSTEMS: Mapping[str, str] = {
    "up-separate": "servepipe up, every node Dedicated",
    "up-auto": "servepipe up, placement Auto",
    "up-inline": "servepipe up, every node Inline",
    "serve-tuned": "Ray Serve with servepipe's flags, without access log",
    "serve-default": "Ray Serve as it comes",
    "serve-floor": "Ray Serve with servepipe's flags and callbacks",
    "http": "uvicorn services behind a gateway",
    "reference": "a server that answers without looking",
}

CONTESTANTS: Mapping[str, Contestant] = {
    contestant.name: contestant
    for contestant in (
        Contestant("separate", "servepipe, all separate", "up-separate", ours=True),
        Contestant("auto", "servepipe, Auto", "up-auto", ours=True),
        Contestant("inline", "servepipe, all inline", "up-inline", ours=True),
        Contestant("serve-tuned", "Ray Serve tuned, handles", "serve-tuned", "handles"),
        Contestant("serve-by-value", "Ray Serve tuned, by value", "serve-tuned", "handles:by-value"),
        Contestant("serve-default", "Ray Serve as it comes", "serve-default", "handles"),
        Contestant("one-deployment", "one Ray Serve deployment", "serve-tuned", "one_deployment"),
        Contestant("http", "uvicorn and a gateway", "http"),
        Contestant("floor", "plain function, servepipe's ingress", "serve-floor", "floor"),
        Contestant("noop", "no-op, raw ASGI in tuned Serve", "serve-tuned", "noop"),
        Contestant("client", "the load client's own limit", "reference"),
    )
}

#: Measured without a system, in the benchmark's own process.
_OURS_IN_PROCESS = ("interpreter",)


def is_ours(name: str) -> bool:
    """Whether a contestant is servepipe's: its failures fail the run, those of others are only told."""
    return name in _OURS_IN_PROCESS or (name in CONTESTANTS and CONTESTANTS[name].ours)
