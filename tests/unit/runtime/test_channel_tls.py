"""Channels take Ray's own certificates, on both sides."""

from __future__ import annotations

import os
import ssl
from dataclasses import replace

import pytest
from bed.certificates import Authority
from channel_bed import Context, connected, served

from servepipe.channel.client import Channel
from servepipe.channel.errors import ChannelError, HandshakeError
from servepipe.runtime.channel_tls import client_context, server_context

FILES = ("RAY_TLS_SERVER_CERT", "RAY_TLS_SERVER_KEY", "RAY_TLS_CA_CERT")


@pytest.fixture
def certificates(tmp_path, monkeypatch):
    """Sets Ray's variables to certificates of one of two authorities."""

    def issue(whose):
        (folder := tmp_path / whose).mkdir()
        authority = Authority(folder)
        # Of an address that nobody has: those of pods are not in Ray's certificates.
        return (*authority.issue("ray", "ray", addresses=("192.0.2.1",)), authority.certificate)

    issued = {whose: issue(whose) for whose in ("ours", "theirs")}

    def choose(whose):
        monkeypatch.setenv("RAY_USE_TLS", "1")
        for name, file in zip(FILES, issued[whose], strict=True):
            monkeypatch.setenv(name, str(file))

    choose("ours")
    return choose


@pytest.mark.parametrize("value", [None, "0", "false"])
def test_without_rays_there_is_none(certificates, monkeypatch, value):
    if value is None:
        monkeypatch.delenv("RAY_USE_TLS")
    else:
        monkeypatch.setenv("RAY_USE_TLS", value)
    assert server_context() is None
    assert client_context() is None


@pytest.mark.parametrize("name", FILES)
def test_a_variable_that_is_missing_is_named(certificates, monkeypatch, name):
    monkeypatch.delenv(name)
    with pytest.raises(ChannelError, match=f"RAY_USE_TLS is set, but {name} is not"):
        server_context()


async def test_both_sides_of_a_cluster_speak_with_each_other(certificates):
    async with served(tcp=True, tls=server_context()) as server:
        assert server.endpoint.tls
        async with connected(server, tls=client_context()) as channel:
            assert await channel.call(None, ("x" * 1_000_000,), {}, Context()) == "x" * 1_000_000


async def test_a_client_takes_no_certificate_of_another_authority(certificates):
    async with served(tcp=True, tls=server_context()) as server:
        certificates("theirs")
        with pytest.raises(ssl.SSLCertVerificationError):
            await Channel.connect(server.endpoint, tls=client_context())


@pytest.mark.parametrize("whose", [None, "theirs"])
async def test_a_replica_lets_no_client_in_without_a_certificate_of_its_authority(certificates, whose):
    async with served(tcp=True, tls=server_context()) as server:
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client.check_hostname = False
        client.load_verify_locations(os.environ["RAY_TLS_CA_CERT"])
        if whose is not None:
            certificates(whose)
            client.load_cert_chain(os.environ["RAY_TLS_SERVER_CERT"], os.environ["RAY_TLS_SERVER_KEY"])
        with pytest.raises((OSError, HandshakeError)):
            await Channel.connect(server.endpoint, tls=client)


async def test_a_client_without_tls_is_let_in_nowhere(certificates):
    async with served(tcp=True, tls=server_context()) as server:
        with pytest.raises((OSError, HandshakeError)):
            await Channel.connect(replace(server.endpoint, tls=False))
