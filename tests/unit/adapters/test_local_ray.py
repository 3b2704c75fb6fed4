"""What a Ray of this machine says about its ports."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from servepipe_operator.adapters.local_ray import LocalRay
from servepipe_operator.adapters.sockets import choose_ports


@pytest.mark.parametrize(
    ("family", "host", "takes_ours"),
    [
        (socket.AF_INET, "127.0.0.1", True),
        (socket.AF_INET, "", True),
        (socket.AF_INET6, "::", True),
        (socket.AF_INET, "127.0.0.9", False),
    ],
)
def test_an_intruder_listens_where_our_http_port_is(
    tmp_path: Path, family: socket.AddressFamily, host: str, takes_ours: bool
) -> None:
    if host == "127.0.0.9" and sys.platform != "linux":
        pytest.skip("only Linux has all of 127.0.0.0/8")
    if family is socket.AF_INET6 and not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    with closing(socket.socket(family)) as listener:
        listener.bind((host, 0))
        listener.listen()
        ports = replace(choose_ports(free=lambda _: True), http=listener.getsockname()[1])
        ray = LocalRay(tmp_path / "ray", ports, cpus=1, gpus=None, environment=lambda _: {})
        assert ray.intruder() == (os.getpid() if takes_ours else None)


async def test_its_processes_get_what_was_asked_for_but_for_what_leads_to_this_ray(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, str] = {}

    async def start(*_: object, env: dict[str, str], **__: object) -> None:
        given.update(env)
        raise OSError("enough")

    shell = {
        "RAY_ADDRESS": "elsewhere:1",
        "RAY_AUTH_MODE": "none",
        "RAY_SERVE_OF_MINE": "x",
        "RAY_SERVE_TAKEN_OUT": "x",
        "SERVEPIPE_CHANNEL": "off",
        "RAY_USAGE_STATS_ENABLED": "1",
    }
    for name, value in shell.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(asyncio, "create_subprocess_exec", start)
    ports = choose_ports(free=lambda _: True)
    asked = {
        "SERVEPIPE_CHANNEL": "on",
        "RAY_SERVE_TAKEN_OUT": None,
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": "1",
        "RAY_AUTH_MODE": "none",
    }
    ray = LocalRay(tmp_path / "ray", ports, cpus=1, gpus=None, environment=lambda folder: {**asked, "FOLDER": folder})
    with pytest.raises(OSError, match="enough"):
        await ray.start()
    await ray.stop()
    assert given.items() >= {"SERVEPIPE_CHANNEL": "on", "RAY_SERVE_OF_MINE": "x", "FOLDER": f"{ray.link}/h"}.items()
    assert given.items() >= {**ports.environment(), "RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}.items()
    assert not given.keys() & {"RAY_ADDRESS", "RAY_SERVE_TAKEN_OUT"}
