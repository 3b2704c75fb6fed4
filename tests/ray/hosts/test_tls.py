"""Channels between two hosts of a cluster in which Ray has TLS: with Ray's own certificates."""

from __future__ import annotations

import os
import ssl
from collections import Counter

import pytest
from bed.certificates import Authority
from channel_bed import RawPeer
from frame_tools import Frame

from servepipe.channel import handshake
from servepipe.channel.frames import Kind
from servepipe.channel.values import load

pytestmark = pytest.mark.ray

STEPS = {name: {"method": name} for name in ("who", "endpoint", "array")}


class Evil:
    """Leaves a folder where it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.fixture(scope="module")
def certificates(short_folder, addresses):
    """Of the cluster, and of strangers who have an authority of their own."""
    made = {}
    for whose in ("ours", "theirs"):
        folder = short_folder / whose
        folder.mkdir()
        authority = Authority(folder)
        made[whose] = (*authority.issue("ray", "ray", addresses=tuple(addresses.values())), authority.certificate)
    return made


@pytest.fixture(scope="module")
def hosts(new_hosts, certificates):
    certificate, key, authority = map(str, certificates["ours"])
    hosts = new_hosts(
        RAY_USE_TLS="1", RAY_TLS_SERVER_CERT=certificate, RAY_TLS_SERVER_KEY=key, RAY_TLS_CA_CERT=authority
    )
    hosts.deploy(STEPS)
    return hosts


@pytest.fixture(scope="module")
def endpoints(hosts):
    return hosts.endpoints()


def test_calls_between_hosts_take_channels_with_tls(hosts, endpoints):
    for host, other in (hosts.both, hosts.both[::-1]):
        with hosts.counted(host, 40) as otherwise:
            answers = Counter(hosts.ask(host, "who").json[0] for _ in range(40))
        assert otherwise == {}
        assert answers.keys() == {"a", "b"}
        endpoint = endpoints[host.address]
        assert endpoint.tls
        assert host.unix_connections(endpoint.path) == 1
        assert host.tcp_peers(endpoint.port) == [other.address]


def test_large_values_over_tls(hosts):
    with hosts.counted(hosts.a, 2 * 4) as otherwise:
        hosts.check_arrays(hosts.a, 8 << 20)
    assert otherwise == {}


async def test_who_has_no_certificate_of_the_cluster_gets_nothing(hosts, endpoints, certificates, tmp_path):
    """Though it knows the token."""
    endpoint = endpoints[hosts.b.address].seen_from("elsewhere")
    strangers = {
        "without TLS": None,
        "without a certificate": context(certificates["ours"][2]),
        "with another authority's": context(certificates["ours"][2], *certificates["theirs"][:2]),
    }
    for how, tls in strangers.items():
        assert await received(endpoint, tls, Evil(tmp_path / "ran")) == [], how
    assert not (tmp_path / "ran").exists()
    # The same by one who has one: then only does it run.
    insider = context(certificates["ours"][2], *certificates["ours"][:2])
    kinds = await received(endpoint, insider, Evil(tmp_path / "ran"))
    assert kinds == [Kind.CHALLENGE, Kind.WELCOME, Kind.RESULT]
    assert (tmp_path / "ran").exists()


async def test_a_caller_does_not_trust_who_listens_with_another_authoritys_certificate(hosts, endpoints, certificates):
    endpoint = endpoints[hosts.b.address].seen_from("elsewhere")
    doubting = context(certificates["theirs"][2], *certificates["ours"][:2])
    with pytest.raises(ssl.SSLCertVerificationError):
        await RawPeer.connect(endpoint, doubting)
    trusting = context(certificates["ours"][2], *certificates["ours"][:2])
    peer = await RawPeer.let_in(endpoint, trusting)
    peer.send(peer.call(1, None, method="who"))
    answer = await peer.frame()
    assert (answer.kind, load(answer.body)[0]) == (Kind.RESULT, "b")
    await peer.leave()


def context(authority, certificate=None, key=None):
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname = False
    made.load_verify_locations(authority)
    if certificate is not None:
        made.load_cert_chain(certificate, key)
    return made


async def received(endpoint, tls, evil):
    """Try to come in and to have ``evil`` unpickled; the kinds of all frames that the replica sends."""
    kinds = []
    peer = None
    try:
        peer = await RawPeer.connect(endpoint, tls)
        hello = handshake.new_hello(endpoint.application, endpoint.replica, 1 << 20)
        peer.send(Frame(Kind.HELLO, 0, hello.encode()))
        challenge = await peer.frame()
        kinds.append(challenge.kind)
        nonce, _ = handshake.parse_challenge(challenge.head)
        peer.send(Frame(Kind.PROOF, 0, handshake.client_proof(endpoint.token, hello, nonce)))
        kinds.append((await peer.frame()).kind)
        peer.send(peer.call(1, evil, method="who"))
        kinds.append((await peer.frame()).kind)
    except (ssl.SSLError, EOFError, ConnectionError):
        pass
    finally:
        if peer is not None:
            await peer.leave()
    return kinds
