"""What a Ray of this machine says about its ports."""

from __future__ import annotations

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
