"""Peers that are no peers: no code of theirs runs, their connection ends with a reason, everybody else goes on."""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import socket
import struct
from contextlib import asynccontextmanager

import pytest
from channel_bed import TOKEN, WAIT_S, Context, RawPeer, connected, folder, served, until
from frame_tools import Frame, Frames

from servepipe.channel import accepted, handshake
from servepipe.channel.client import Channel
from servepipe.channel.endpoints import Endpoint
from servepipe.channel.errors import ChannelLostError, HandshakeError, Reason
from servepipe.channel.frames import (
    HEADER,
    MAGIC,
    STRANGERS_FRAME_BYTES,
    VERSION,
    Kind,
    Limits,
    encode_refusal,
    parse_refusal,
)

RAN: list[str] = []


def run(what):
    RAN.append(what)


class Evil:
    """Runs code where it is unpickled."""

    def __reduce__(self):
        return run, ("evil",)


@pytest.fixture(autouse=True)
def nothing_ran():
    RAN.clear()
    yield
    assert RAN == []


def hello(application="m1--a", replica="replica"):
    return handshake.new_hello(application, replica, 1 << 20)


EVIL = pickle.dumps(((Evil(),), {}))

STRANGERS = {
    "text": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "one wrong byte": b"x",
    "zeros": bytes(10_000),
    "another version": struct.pack("<2sBBHHQII", MAGIC, 9, Kind.HELLO, 0, 0, 0, 0, 0),
    "a call": Frame(Kind.CALL, 1, b"", EVIL).encode(),
    "an exception": Frame(Kind.FAILURE, 1, b"", EVIL).encode(),
    "a result": Frame(Kind.RESULT, 1, b"", EVIL).encode(),
    "a proof without a hello": Frame(Kind.PROOF, 0, bytes(32)).encode(),
    "a hello that is none": Frame(Kind.HELLO, 0, b"hello").encode(),
    "a hello with a body": Frame(Kind.HELLO, 0, hello().encode(), bytes(STRANGERS_FRAME_BYTES)).encode(),
    "a large frame": HEADER.pack(MAGIC, VERSION, Kind.HELLO, 0, 0, 0, 0, 1 << 30),
    "large buffers": HEADER.pack(MAGIC, VERSION, Kind.HELLO, 0, 1, 0, 0, 0) + struct.pack("<Q", 1 << 40),
    "two hellos": Frame(Kind.HELLO, 0, hello().encode()).encode() * 2,
    "another application": Frame(Kind.HELLO, 0, hello("m1--b").encode()).encode(),
    "another replica": Frame(Kind.HELLO, 0, hello(replica="r2").encode()).encode(),
}


@pytest.mark.parametrize("tcp", [False, True])
@pytest.mark.parametrize("name", STRANGERS)
async def test_strangers_are_not_let_in(name, tcp, caplog):
    async with served(tcp=tcp) as server, connected(server) as channel:
        peer = await RawPeer.connect(server.endpoint)
        peer.send(STRANGERS[name])
        frames = await peer.end()
        assert all(frame.kind in (Kind.REJECT, Kind.CHALLENGE) for frame in frames)
        await until(lambda: server.connections == 1, "the stranger's connection has ended")
        assert await channel.call(None, (1,), {}, Context()) == 1
    assert "is closed" in caplog.text


@pytest.mark.parametrize("name", ["a hello with a body", "a large frame", "large buffers"])
async def test_strangers_get_little_memory(name, caplog):
    async with served() as server:
        peer = await RawPeer.connect(server.endpoint)
        peer.send(STRANGERS[name])
        assert await peer.end() == []
    assert "too large" in caplog.text


async def test_a_peer_of_another_version_is_told():
    async with served() as server:
        peer = await RawPeer.connect(server.endpoint)
        peer.send(STRANGERS["another version"])
        (refusal,) = await peer.end()
        reason, text = parse_refusal(refusal.head)
        assert reason is Reason.VERSION
        assert f"version 9; this side speaks {VERSION}" in text


@pytest.mark.parametrize("token", [b"", b"another", TOKEN[:-1], TOKEN + b"t"])
async def test_a_wrong_token(token):
    async with served() as server:
        peer = await RawPeer.connect(server.endpoint)
        await peer.prove(token, hello())
        peer.send(peer.call(1, Evil()))
        (refusal,) = await peer.end()
        assert parse_refusal(refusal.head)[0] is Reason.TOKEN


async def test_a_proof_that_was_overheard_proves_nothing_again():
    async with served() as server:
        first = await RawPeer.connect(server.endpoint)
        said = hello()
        proof = await first.prove(TOKEN, said)
        assert (await first.frame()).kind == Kind.WELCOME
        second = await RawPeer.connect(server.endpoint)
        second.send(Frame(Kind.HELLO, 0, said.encode()))
        assert (await second.frame()).kind == Kind.CHALLENGE
        second.send(Frame(Kind.PROOF, 0, proof))
        second.send(second.call(1, Evil()))
        (refusal,) = await second.end()
        assert parse_refusal(refusal.head)[0] is Reason.TOKEN
        first.close()


async def test_a_servers_own_proof_is_not_taken_back():
    async with served() as server:
        peer = await RawPeer.connect(server.endpoint)
        peer.send(Frame(Kind.HELLO, 0, hello().encode()))
        _, proof = handshake.parse_challenge((await peer.frame()).head)
        peer.send(Frame(Kind.PROOF, 0, proof))
        (refusal,) = await peer.end()
        assert parse_refusal(refusal.head)[0] is Reason.TOKEN


@pytest.mark.parametrize("cut", [0, 2, 40, -1])
async def test_half_a_handshake_has_an_end(cut, caplog):
    sent = Frame(Kind.HELLO, 0, hello().encode()).encode()[:cut]
    async with served(limits=Limits(handshake_s=0.2)) as server:
        silent = await RawPeer.connect(server.endpoint)
        silent.send(sent)
        assert await silent.end() == []
        assert "no handshake within 0.2 s" in caplog.text
        gone = await RawPeer.connect(server.endpoint)
        gone.send(sent)
        await until(lambda: server.connections == 1, "the next one has connected")
        gone.close()
        await until(lambda: server.connections == 0, "both connections have ended")


async def test_there_are_only_so_many_strangers():
    async with served(limits=Limits(max_strangers=3, max_connections=5)) as server, connected(server) as channel:
        strangers = [await RawPeer.connect(server.endpoint) for _ in range(3)]
        await until(lambda: server.connections == 4, "three strangers have connected")
        with pytest.raises(HandshakeError, match="too many") as caught:
            await Channel.connect(server.endpoint)
        assert caught.value.reason is Reason.BUSY
        assert await channel.call(None, (1,), {}, Context()) == 1
        for stranger in strangers:
            stranger.close()
        await until(lambda: server.connections == 1, "the strangers have gone")
        async with connected(server) as another:
            assert await another.call(None, (1,), {}, Context()) == 1


async def test_another_users_process_is_not_let_in(monkeypatch, caplog):
    async with served() as server:
        monkeypatch.setattr(accepted.os, "geteuid", lambda: os.getuid() + 1)
        with pytest.raises(HandshakeError, match="closed the connection"):
            await Channel.connect(server.endpoint)
        assert "belongs to another user" in caplog.text


def _call(number, head=None):
    peer_head = struct.pack("<HHHHId", 0, 0, 0, 0, 0, 0.0) if head is None else head
    return Frame(Kind.CALL, number, peer_head, pickle.dumps(((), {})))


KNOWN = {
    "garbage": b"garbage",
    "an unknown kind": HEADER.pack(MAGIC, VERSION, 99, 0, 0, 0, 0, 0),
    "a kind for streams": Frame(Kind.CHUNK, 1).encode(),
    "a handshake again": Frame(Kind.HELLO, 0, hello().encode()).encode(),
    "a result": Frame(Kind.RESULT, 1, b"", EVIL).encode(),
    "an id twice": (_call(5).encode() * 2),
    "a smaller id": _call(5).encode() + _call(4).encode(),
    "id 0": _call(0).encode(),
    "a cancel for what was never called": Frame(Kind.CANCEL, 7).encode(),
    "a head that is none": _call(1, b"head").encode(),
    "a method that was never defined": _call(1, struct.pack("<HHHHId", 3, 0, 0, 0, 0, 0.0)).encode(),
    "a large frame": HEADER.pack(MAGIC, VERSION, Kind.CALL, 0, 0, 1, 0, (1 << 20) + 1),
    "a call after its goodbye": Frame(Kind.GOODBYE, 0).encode() + _call(1).encode(),
}


@pytest.mark.parametrize("name", KNOWN)
async def test_known_peers_keep_to_the_rules(name, caplog):
    gate = asyncio.Event()

    async def wait(call):
        await gate.wait()

    async with served(wait, limits=Limits(max_frame_bytes=1 << 20)) as server, connected(server) as channel:
        other = asyncio.ensure_future(channel.call(None, (), {}, Context()))
        peer = await RawPeer.let_in(server.endpoint)
        peer.send(KNOWN[name])
        await peer.end()
        await until(lambda: server.connections == 1, "the peer's connection has ended")
        await until(lambda: server.running == 1, "the peer's own calls are cancelled")
        gate.set()
        assert await other is None
    if name != "a call after its goodbye":  # there it may end before the call is read
        assert "is closed" in caplog.text


@pytest.mark.parametrize("cut", [1, HEADER.size - 1, HEADER.size, HEADER.size + 3, 200, 50_000])
async def test_half_a_frame_is_never_a_call(cut, caplog):
    caplog.set_level(logging.WARNING)
    called = []

    async def note(call):
        called.append(call)

    async with served(note) as server:
        peer = await RawPeer.let_in(server.endpoint)
        frame = peer.call(1, Evil(), bytes(100_000)).encode()
        peer.send(frame[:cut])
        peer.close()
        await until(lambda: server.connections == 0, "the connection has ended")
        assert called == []
    assert caplog.text == ""


async def test_a_peer_that_fetches_nothing_is_given_up(caplog):
    async def large(call):
        return bytes(1 << 20)

    async with (
        served(large, limits=Limits(stall_s=0.3, max_waiting_bytes=1 << 22)) as server,
        connected(server) as channel,
    ):
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX) as reader:
            reader.setblocking(False)
            await loop.sock_connect(reader, server.endpoint.path)
            said, got = handshake.new_hello("m1--a", "replica", 1 << 30), Frames()
            await loop.sock_sendall(reader, Frame(Kind.HELLO, 0, said.encode()).encode())
            while not got.frames:
                got.feed(await loop.sock_recv(reader, 1000))
            nonce, _ = handshake.parse_challenge(got.frames[0].head)
            await loop.sock_sendall(reader, Frame(Kind.PROOF, 0, handshake.client_proof(TOKEN, said, nonce)).encode())
            await until(lambda: server.connections == 2, "the slow reader is let in")
            await loop.sock_sendall(reader, b"".join(_call(number).encode() for number in range(1, 300)))
            await until(lambda: server.connections == 1, "the slow reader's connection has ended")
        assert "it fetched nothing for 0.3 s" in caplog.text
        assert len(await channel.call(None, (), {}, Context())) == 1 << 20


# The other way round: a client and whoever listens where a replica was.


@asynccontextmanager
async def impostor(behave):
    """A server that does what ``behave(peer)`` does with each connection."""
    tasks = set()

    async def serve(reader, writer):
        tasks.add(asyncio.current_task())
        peer = RawPeer(reader, writer)
        try:
            await behave(peer)
        except (EOFError, ConnectionError):
            pass
        finally:
            peer.close()

    async with folder() as path:
        listening = await asyncio.start_unix_server(serve, path / "x.sock")
        try:
            yield Endpoint("m1--a", "replica", TOKEN, path=str(path / "x.sock"))
        finally:
            listening.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _challenge(peer, token=TOKEN):
    said = handshake.Hello.parse((await peer.frame()).head)
    nonce = handshake.new_nonce()
    peer.send(Frame(Kind.CHALLENGE, 0, nonce + handshake.server_proof(token, said, nonce)))


async def _welcome(peer):
    await _challenge(peer)
    assert (await peer.frame()).kind == Kind.PROOF
    peer.send(Frame(Kind.WELCOME, 0, handshake.encode_welcome(100, 1 << 20)))
    assert (await peer.frame()).kind == Kind.OFFER


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "does not begin"),
        (Frame(Kind.RESULT, 1, b"", EVIL), "no place"),
        (Frame(Kind.WELCOME, 0, handshake.encode_welcome(1, 1)), "no place"),
        (Frame(Kind.CHALLENGE, 0, b"short"), "cannot be read"),
        (Frame(Kind.CHALLENGE, 0, bytes(64)), "does not know the token"),
        (HEADER.pack(MAGIC, 7, Kind.REJECT, 0, 0, 0, 0, 0), f"version 7; this side speaks {VERSION}"),
        (HEADER.pack(MAGIC, VERSION, Kind.CHALLENGE, 0, 0, 0, 0, 1 << 30), "too large"),
        (b"".join(encode_refusal(Reason.DRAINING, "about to end")[0]), "about to end"),
        (b"", "closed the connection"),
    ],
)
async def test_whoever_is_no_replica_gets_no_call(answer, words):
    async def behave(peer):
        await peer.frame()
        if answer:
            peer.send(answer)
            await peer.end()

    async with impostor(behave) as endpoint:
        with pytest.raises(HandshakeError, match=words):
            await Channel.connect(endpoint)


async def test_a_silent_listener_has_no_hold_on_a_client():
    async def behave(peer):
        await peer.end()

    async with impostor(behave) as endpoint:
        with pytest.raises(TimeoutError):
            await Channel.connect(endpoint, limits=Limits(handshake_s=0.1))


async def test_an_impostor_learns_no_proof():
    seen = []

    async def behave(peer):
        await _challenge(peer, b"guessed")
        seen.extend(await peer.end())

    async with impostor(behave) as endpoint:
        with pytest.raises(HandshakeError) as caught:
            await Channel.connect(endpoint)
        assert caught.value.reason is Reason.TOKEN
        await until(lambda: seen, "the impostor has been refused")
    assert [frame.kind for frame in seen] == [Kind.REJECT]


ANSWERS = {
    "garbage": b"garbage",
    "half a frame": Frame(Kind.RESULT, 1, b"", EVIL).encode()[:-1],
    "an unknown call": Frame(Kind.RESULT, 2, b"", EVIL).encode(),
    "a stream": Frame(Kind.CHUNK, 1).encode(),
    "a call": _call(1).encode(),
    "a cancelled call that was not": Frame(Kind.CANCEL, 1).encode(),
    "a refusal without a reason": Frame(Kind.REJECT, 1).encode(),
    "a large frame": HEADER.pack(MAGIC, VERSION, Kind.RESULT, 0, 0, 1, 0, (1 << 20) + 1),
    "nothing": b"",
}


@pytest.mark.parametrize("name", ANSWERS)
async def test_a_server_that_breaks_the_rules_is_lost(name):
    async def behave(peer):
        await _welcome(peer)
        await peer.frame()
        peer.send(ANSWERS[name])

    async with impostor(behave) as endpoint:
        channel = await Channel.connect(endpoint, limits=Limits(max_frame_bytes=1 << 20))
        with pytest.raises(ChannelLostError) as caught:
            async with asyncio.timeout(WAIT_S):
                await channel.call(None, (), {}, Context())
        assert caught.value.sent
        assert not channel.usable
        await channel.ended


async def test_a_second_answer_to_one_call_ends_the_channel(caplog):
    async def behave(peer):
        await _welcome(peer)
        answer = Frame(Kind.RESULT, (await peer.frame()).call, b"", pickle.dumps(1)).encode()
        peer.send(answer + answer)
        await peer.end()

    async with impostor(behave) as endpoint:
        channel = await Channel.connect(endpoint)
        assert await channel.call(None, (), {}, Context()) == 1
        await channel.ended
    assert "an answer to call 1, which is not under way" in caplog.text
