"""What a run has to say about the ports of this machine: who else can reach it, and who sits on its own port."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from servepipe.errors import RunError
from servepipe_operator.adapters.local_ray import LocalRay

__all__ = ["open_ports_notice", "refuse_intruder"]


def open_ports_notice(listening: Iterable[tuple[str, int]]) -> str:
    """One line about what listens on more than loopback, "" where nothing does.

    Args:
        listening: Name of the process and port. Ray's actors are called ``ray::Class...``: the class is what is shown.
    """
    ports: dict[str, list[str]] = {}
    for name, port in listening:
        shown = name.split(":")[2] if "::" in name else name.partition(":")[0]
        ports.setdefault(shown, []).append(str(port))
    if not ports:
        return ""
    listed = "; ".join(f"{name} {', '.join(numbers)}" for name, numbers in ports.items())
    return (
        f"Note: these listen on every address of this machine, not on loopback only: {listed} "
        "(what they offer to whom: docs/security.md)"
    )


async def refuse_intruder(ray: LocalRay) -> None:
    """Raises `RunError` when somebody else has taken the HTTP port since it was found free."""
    if (pid := await asyncio.to_thread(ray.intruder)) is not None:
        raise RunError(
            f"Port {ray.ports.http} was free when this run chose it, and is taken now by process {pid}",
            fix="Start again, with --port if it must be a certain one.",
        )
