"""Ports are taken only where nobody listens."""

from __future__ import annotations

import socket
from contextlib import closing

import pytest

from servepipe.errors import RunError
from servepipe.runtime.flags import PLACES
from servepipe_operator.adapters.sockets import choose_ports, is_free


@pytest.mark.parametrize("host", ["", "127.0.0.1"])
def test_a_port_that_somebody_shares_is_not_free(host: str) -> None:
    with closing(socket.socket()) as listener:
        # As HAProxy binds: with a second bind of this kind both would get requests.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind((host, 0))
        listener.listen()
        port = listener.getsockname()[1]
        assert not is_free(port)
    assert is_free(port)


def test_the_ports_of_serves_proxies_are_no_business_of_a_resource() -> None:
    assert choose_ports(free=lambda _: True).environment().keys() <= PLACES


def test_usual_ports_are_preferred() -> None:
    ports = choose_ports(free=lambda _: True)
    assert (ports.http, ports.grpc, ports.dashboard) == (8000, 9000, 8265)
    assert (ports.haproxy_stats, ports.haproxy_metrics) == (8404, 9101)
    assert (ports.proxy_http, ports.proxy_grpc) == (8500, 9500)


def test_the_next_free_one_is_taken() -> None:
    busy = {8000, 8001, 8404, 9101, 20_007}
    ports = choose_ports(taken=[8002], free=lambda port: port not in busy)
    assert (ports.http, ports.haproxy_stats, ports.haproxy_metrics) == (8003, 8405, 9102)
    assert 20_007 not in range(ports.replica_http, ports.replica_http + 400)
    assert abs(ports.replica_http - ports.replica_grpc) >= 400


def test_no_port_is_given_twice() -> None:
    ports = choose_ports(8265, free=lambda _: True)
    assert (ports.http, ports.dashboard) == (8265, 8266)
    assert len(set(ports.to_json().values())) == len(ports.to_json())


def test_a_port_that_was_asked_for_is_not_replaced() -> None:
    with pytest.raises(RunError, match="Port 8123 is taken"):
        choose_ports(8123, free=lambda port: port != 8123)
    with pytest.raises(RunError, match="Port 8123 is taken"):
        choose_ports(8123, taken=[8123], free=lambda _: True)


def test_nothing_free() -> None:
    with pytest.raises(RunError, match="No free port for HTTP"):
        choose_ports(free=lambda _: False)
    with pytest.raises(RunError, match="in a row"):
        choose_ports(free=lambda port: port < 20_000)


def test_serves_own_proxies_learn_their_ports() -> None:
    ports = choose_ports(free=lambda _: True)
    assert set(ports.environment().values()) == {"8500", "9500"}
    assert ports.replica_ports(ports.replica_http) == range(20_000, 20_400)
