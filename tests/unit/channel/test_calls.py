"""Calls over real sockets: values, errors, metadata, limits, contexts."""

from __future__ import annotations

import asyncio
import contextvars
import datetime
import io
import pickle
import ssl
import time

import numpy as np
import pytest
from channel_bed import Context, RawPeer, connected, echo, folder, served, until, within

from servepipe.channel.client import Channel
from servepipe.channel.endpoints import Endpoint
from servepipe.channel.errors import (
    AnswerTooLargeError,
    CallRejectedError,
    CallTimeoutError,
    ChannelError,
    ChannelLostError,
    FrameTooLargeError,
    HandshakeError,
    Reason,
    RemoteCallError,
)
from servepipe.channel.frames import Kind, Limits
from servepipe.channel.server import ChannelServer


@pytest.mark.parametrize("tcp", [False, True])
async def test_values_go_there_and_come_back(tcp):
    async with served(tcp=tcp) as server, connected(server) as channel:
        for value in (1, "two", {"three": [None, 4.5]}, b"x" * 100_000, "y" * 1_000_000):
            assert await channel.call(None, (value,), {}, Context()) == value


async def test_a_handler_sees_the_whole_call():
    seen = []

    async def keep(call):
        seen.append(call)

    async with served(keep) as server, connected(server) as channel:
        pins = {"m1": "a", "m2": "b"}
        for method in ("forward", None, "forward"):
            context = Context("id-7", 4e9, pins)
            assert await channel.call(method, (1, 2), {"x": 3}, context) is None
    assert [call.method for call in seen] == ["forward", None, "forward"]
    assert seen[2].args == (1, 2)
    assert seen[2].kwargs == {"x": 3}
    assert (seen[2].request_id, seen[2].deadline, seen[2].pins) == ("id-7", 4e9, pins)
    assert seen[0].pins is seen[2].pins


async def test_calls_overtake_each_other():
    gates = [asyncio.Event() for _ in range(50)]

    async def wait(call):
        await gates[call.args[0]].wait()
        return call.args[0]

    done = []
    async with served(wait) as server, connected(server) as channel:

        async def one(number):
            done.append(await channel.call(None, (number,), {}, Context()))

        async with asyncio.TaskGroup() as group:
            for number in range(50):
                group.create_task(one(number))
            await until(lambda: server.running == 50, "all calls run")
            for number in reversed(range(50)):
                gates[number].set()
                await until(lambda number=number: done[-1:] == [number], f"call {number} has its answer")
        assert channel.in_flight == 0


async def test_large_arrays_and_small_calls_share_a_connection():
    async with served() as server, connected(server) as channel:
        arrays = [np.full(3_000_000, number, "f8") for number in range(4)]
        calls = [channel.call(None, ({"a": [array]},), {}, Context()) for array in arrays]
        calls += [channel.call(None, (number,), {}, Context()) for number in range(100)]
        answers = await asyncio.gather(*calls)
        for array, answer in zip(arrays, answers, strict=False):
            np.testing.assert_array_equal(answer["a"][0], array)
            answer["a"][0][0] = -1  # it is the caller's own
        assert answers[4:] == [*range(100)]


async def test_a_caller_may_write_to_what_it_has_sent():
    async with served() as server, connected(server) as channel:
        array = np.zeros(5_000_000)
        call = asyncio.ensure_future(channel.call(None, (array,), {}, Context()))
        await until(lambda: channel.in_flight, "the call has begun")
        array[:] = 1
        assert (await call).max() == 0


class OnlyHereError(Exception):
    def __reduce__(self):
        raise TypeError("cannot be pickled")


class CannotBeReadError(Exception):
    def __reduce__(self):
        return int, ("no number",)


@pytest.mark.parametrize(
    ("raised", "kind", "words"),
    [
        (ValueError("bad", 7), ValueError, "bad"),
        (TimeoutError("late"), TimeoutError, "late"),
        (OnlyHereError("here"), RemoteCallError, "OnlyHereError: here"),
        (CannotBeReadError("x"), RemoteCallError, "CannotBeReadError"),
        (SystemExit(3), RemoteCallError, "SystemExit: 3"),
        (KeyboardInterrupt(), RemoteCallError, "KeyboardInterrupt"),
        (asyncio.CancelledError(), RemoteCallError, "CancelledError"),
        (StopAsyncIteration(1), StopAsyncIteration, "1"),
        (CallRejectedError("not now", reason=Reason.BUSY), CallRejectedError, "not now"),
    ],
)
async def test_what_a_handler_raises_reaches_the_caller(raised, kind, words):
    async def fail(call):
        raise raised

    async with served(fail) as server, connected(server) as channel:
        for _ in range(2):
            with pytest.raises(kind, match=words):
                await channel.call(None, (), {}, Context())
        assert channel.in_flight == 0
        assert server.running == 0


async def test_answers_that_cannot_be_pickled_are_errors():
    async def answer(call):
        return lambda: 0

    async with served(answer) as server, connected(server) as channel:
        with pytest.raises(Exception, match="pickle"):
            await channel.call(None, (), {}, Context())
        assert channel.usable


async def test_arguments_that_cannot_be_pickled_never_leave():
    async with served() as server, connected(server) as channel:
        with pytest.raises(Exception, match="pickle"):
            await channel.call(None, (lambda: 0,), {}, Context())
        assert channel.in_flight == 0
        assert await channel.call(None, (1,), {}, Context()) == 1


class BreaksWhenRead:
    def __reduce__(self):
        return int, ("no number",)


class EndsItsReader:
    def __reduce__(self):
        return exit, (3,)


@pytest.mark.parametrize(("value", "kind"), [(BreaksWhenRead(), ValueError), (EndsItsReader(), RemoteCallError)])
async def test_values_that_cannot_be_read(value, kind):
    async def answer(call):
        return value

    async with served(answer) as server, connected(server) as channel:
        with pytest.raises(kind):  # the arguments, in the replica
            await channel.call(None, (value,), {}, Context())
        with pytest.raises(kind):  # the answer, here
            await channel.call(None, (), {}, Context())
        assert channel.usable


class _KnowsMore(pickle.Pickler):
    def reducer_override(self, value):
        return (str, ("from here",)) if isinstance(value, OnlyHereError) else NotImplemented


def _dumps(value, protocol, buffer_callback):
    file = io.BytesIO()
    _KnowsMore(file, protocol, buffer_callback=buffer_callback).dump(value)
    return file.getvalue()


async def test_what_pickle_refuses_goes_to_another_pickler():
    async def answer(call):
        return [*call.args, OnlyHereError()]

    array = np.arange(100_000)
    async with served(answer, fallback=_dumps) as server, connected(server, fallback=_dumps) as channel:
        first, *rest = await channel.call(None, (array, OnlyHereError()), {}, Context())
        np.testing.assert_array_equal(first, array)
        assert rest == ["from here", "from here"]


class TestLimits:
    async def test_a_large_argument_is_refused_here_and_the_next_call_is_whole(self):
        async with served() as server, connected(server, limits=Limits(max_frame_bytes=10_000)) as channel:
            context = Context(pins={"m1": "a"})
            with pytest.raises(FrameTooLargeError):
                await channel.call("forward", (b"x" * 10_000,), {}, context)
            # What the refused call would have defined is defined by this one.
            assert await channel.call("forward", (5,), {}, context) == 5

    @pytest.mark.parametrize(("here", "there"), [(1 << 20, 10_000), (10_000, 1 << 20)])
    async def test_a_large_answer_is_an_error_by_either_limit(self, here, there):
        async def large(call):
            return b"x" * 20_000

        async with (
            served(large, limits=Limits(max_frame_bytes=there)) as server,
            connected(server, limits=Limits(max_frame_bytes=here)) as channel,
        ):
            with pytest.raises(AnswerTooLargeError, match="the answer is a value of"):
                await channel.call(None, (), {}, Context())
            assert channel.usable

    async def test_a_large_exception_is_described(self):
        async def fail(call):
            raise ValueError("x" * 50_000)

        async with served(fail) as server, connected(server, limits=Limits(max_frame_bytes=10_000)) as channel:
            with pytest.raises(AnswerTooLargeError, match="the call raised ValueError"):
                await channel.call(None, (), {}, Context())
            assert channel.usable

    async def test_calls_beyond_the_limit_are_rejected_here(self):
        gate = asyncio.Event()

        async def wait(call):
            await gate.wait()

        async with served(wait, limits=Limits(max_calls=3)) as server, connected(server) as channel:
            calls = [asyncio.ensure_future(channel.call(None, (), {}, Context())) for _ in range(3)]
            await until(lambda: channel.in_flight == 3, "three calls are in flight")
            with pytest.raises(CallRejectedError) as caught:
                await channel.call(None, (), {}, Context())
            assert caught.value.reason is Reason.BUSY
            gate.set()
            assert await asyncio.gather(*calls) == [None] * 3

    async def test_calls_beyond_the_limit_are_rejected_there(self):
        gate = asyncio.Event()

        async def wait(call):
            await gate.wait()

        async with served(wait, limits=Limits(max_calls=2)) as server:
            peer = await RawPeer.let_in(server.endpoint)
            for number in (1, 2, 3):
                peer.send(peer.call(number))
            answer = await peer.frame()
            assert (answer.kind, answer.call, answer.head[0]) == (Kind.REJECT, 3, Reason.BUSY)
            gate.set()
            assert {(await peer.frame()).call for _ in range(2)} == {1, 2}
            peer.close()

    async def test_calls_wait_for_a_replica_that_reads_nothing_only_so_long(self):
        limits = Limits(max_waiting_bytes=1 << 20)
        async with served(tcp=True) as server, connected(server, limits=limits) as channel:
            (accepted,) = server._connections
            accepted.pause_reading()
            calls = []
            async with asyncio.timeout(30):
                while True:
                    task = asyncio.ensure_future(channel.call(None, (bytes(300_000),), {}, Context()))
                    await asyncio.sleep(0)
                    if task.done():
                        break
                    calls.append(task)
            with pytest.raises(CallRejectedError):
                await task
            assert 3 <= len(calls) < 20
            accepted.resume_reading()
            assert await asyncio.gather(*calls) == [bytes(300_000)] * len(calls)


class TestDeadlines:
    async def test_a_call_ends_at_its_deadline_here_and_there(self):
        ended = []

        async def wait(call):
            try:
                await asyncio.Event().wait()
            finally:
                ended.append(call.request_id)

        async with served(wait) as server, connected(server) as channel:
            started = time.monotonic()
            with pytest.raises(CallTimeoutError):
                await channel.call(None, (), {}, within(0.1))
            assert 0.09 < time.monotonic() - started < 10
            await until(lambda: ended and not channel.in_flight, "the replica has ended the call")

    async def test_a_call_may_be_given_up_before_its_deadline(self):
        async def wait(call):
            await asyncio.Event().wait()

        async with served(wait) as server, connected(server, limits=Limits(margin_s=100)) as channel:
            with pytest.raises(CallTimeoutError):
                await channel.call(None, (), {}, within(100.1))

    async def test_a_call_that_is_too_late_is_not_made(self):
        async with served() as server, connected(server) as channel:
            with pytest.raises(CallTimeoutError):
                await channel.call(None, (), {}, within(-1))
            assert channel.in_flight == 0

    @pytest.mark.asyncio(loop_factories=["asyncio"])  # the other does not show its timers
    async def test_an_answer_in_time_leaves_no_timer(self):
        async with served() as server, connected(server) as channel:
            for _ in range(500):
                await channel.call(None, (1,), {}, within(1000))
            scheduled = asyncio.get_running_loop()._scheduled
            assert sum(not handle.cancelled() for handle in scheduled) < 20


class TestContexts:
    async def test_each_call_begins_with_an_empty_context(self):
        mark = contextvars.ContextVar("mark", default="none")
        mark.set("whoever started the server")
        seen = []

        async def look(call):
            seen.append(mark.get())
            mark.set("an earlier call")
            await asyncio.sleep(0)
            return mark.get()

        async with served(look) as server, connected(server) as channel:
            mark.set("the caller")
            for _ in range(3):
                assert await channel.call(None, (), {}, Context()) == "an earlier call"
            assert mark.get() == "the caller"
        assert seen == ["none"] * 3


class TestWrites:
    async def test_calls_and_answers_of_one_tick_leave_in_one_write(self):
        async with served() as server, connected(server) as channel:
            (accepted,) = server._connections
            counts = {}
            for end in (channel, accepted):
                transport, write = end._transport, end._transport.write
                counts[end] = 0

                def counted(data, end=end, write=write):
                    counts[end] += 1
                    write(data)

                end._transport = _Counting(transport, counted)
            numbers = range(200)
            answers = await asyncio.gather(*(channel.call(None, (number,), {}, Context()) for number in numbers))
            assert answers == [*numbers]
            # The first goes alone, since it might have been the only one.
            assert counts[channel] <= 3
            assert counts[accepted] <= 8


class _Counting:
    def __init__(self, transport, write):
        self._transport = transport
        self.write = write

    def __getattr__(self, name):
        return getattr(self._transport, name)


async def test_ping_asks_the_event_loop():
    async with served() as server, connected(server) as channel:
        await channel.ping()
        channel.abort()
        await channel.ended
        with pytest.raises(ChannelLostError):
            await channel.ping()


class TestPlaces:
    async def test_a_folder_that_others_may_enter_is_refused(self):
        async with folder() as path:
            path.chmod(0o755)
            server = ChannelServer(echo, application="a", replica="r")
            with pytest.raises(ChannelError, match="only this user"):
                await server.listen_unix(path)
            path.chmod(0o700)
            (path / "link").symlink_to(path)
            with pytest.raises(ChannelError, match="only this user"):
                await server.listen_unix(path / "link")
            (path / ("x" * 100)).mkdir(mode=0o700)
            with pytest.raises(ChannelError, match="longer than"):
                await server.listen_unix(path / ("x" * 100))
            await server.close()

    async def test_the_socket_goes_with_the_server(self):
        async with folder() as path:
            async with ChannelServer(echo, application="a", replica="r") as server:
                await server.listen_unix(path)
                assert [str(file) for file in path.iterdir()] == [server.endpoint.path]
            assert [*path.iterdir()] == []

    async def test_nobody_listens(self):
        async with folder() as path:
            with pytest.raises(OSError, match="No such file"):
                await Channel.connect(Endpoint("a", "r", b"t", path=str(path / "x.sock")))


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """Contexts of a server and of a client that trusts it."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    folder = tmp_path_factory.mktemp("tls")
    (folder / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    client = ssl.create_default_context(cafile=folder / "cert.pem")
    client.check_hostname = False
    return server, client


class TestTls:
    async def test_calls_go_over_tls(self, certificates):
        there, here = certificates
        async with served(tcp=True, tls=there) as server, connected(server, tls=here) as channel:
            assert channel.endpoint.tls
            array = np.arange(2_000_000)
            np.testing.assert_array_equal(await channel.call(None, (array,), {}, Context()), array)

    async def test_a_certificate_is_needed_and_checked(self, certificates):
        there, _ = certificates
        async with served(tcp=True, tls=there, limits=Limits(handshake_s=5)) as server:
            endpoint = server.endpoint.seen_from("there")
            with pytest.raises(HandshakeError, match="TLS"):
                await Channel.connect(endpoint)
            with pytest.raises(ssl.SSLError):
                await Channel.connect(endpoint, tls=ssl.create_default_context())
            peer = await RawPeer.connect(endpoint)
            peer.send(b"GET / HTTP/1.1\r\n\r\n")
            assert await _bytes_until_end(peer) < 100
            assert server.connections == 0


async def _bytes_until_end(peer):
    data = await peer._reader.read(-1)
    peer.close()
    return len(data)
