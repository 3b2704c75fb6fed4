"""What is said about ports."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from servepipe.errors import RunError
from servepipe_operator.local.notices import open_ports_notice, refuse_intruder


def test_what_listens_for_everybody_is_named_once_with_its_ports() -> None:
    assert open_ports_notice([]) == ""
    listening = [("raylet", 1), ("raylet", 2), ("ray::ProxyActor:x", 3)]
    assert open_ports_notice(listening).endswith(
        "not on loopback only: raylet 1, 2; ProxyActor 3 (what they offer to whom: docs/security.md)"
    )


class FakeRay:
    ports = SimpleNamespace(http=8000)

    def __init__(self, pid: int | None) -> None:
        self._pid = pid

    def intruder(self) -> int | None:
        return self._pid


async def test_somebody_else_on_our_port_is_refused() -> None:
    await refuse_intruder(cast("Any", FakeRay(None)))
    with pytest.raises(RunError, match=r"Port 8000 was free .* taken now by process 42"):
        await refuse_intruder(cast("Any", FakeRay(42)))
