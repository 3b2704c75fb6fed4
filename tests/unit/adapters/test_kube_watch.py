"""The watch of one kind: changes as they come, and each way in which it can end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import web
from fake_kube import FakeKube, serving, status
from hypothesis import given
from hypothesis import strategies as st

from servepipe_operator.adapters.kube import Resource
from servepipe_operator.adapters.kube_errors import Forbidden, Gone, NotFound, Unavailable
from servepipe_operator.adapters.kube_watch import lines

PIPES = Resource("servepipe.dev/v1alpha1", "ServePipeline", "servepipelines")


def pipe(name: str, **labels: str) -> dict:
    metadata = {"namespace": "ns", "name": name, "labels": labels}
    return {"apiVersion": PIPES.api_version, "kind": PIPES.kind, "metadata": metadata}


@given(st.lists(st.binary(max_size=5).filter(lambda line: b"\n" not in line)), st.binary(max_size=3), st.data())
def test_lines_are_the_same_however_the_bytes_come(whole: list[bytes], tail: bytes, data: st.DataObject) -> None:
    text = b"".join(line + b"\n" for line in whole)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    chunks = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    chunks.append(tail.replace(b"\n", b""))

    async def come() -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield chunk

    async def read() -> list[bytes]:
        return [line async for line in lines(come())]

    assert asyncio.run(read()) == whole


async def test_changes_come_until_the_connection_is_cut() -> None:
    fake = FakeKube()
    async with serving(fake) as kube, asyncio.timeout(10):
        first = fake.put(pipe("a"))
        [page] = [page async for page in kube.pages(PIPES)]
        assert [item["metadata"]["name"] for item in page.items] == ["a"]
        async with kube.watch(PIPES, labels="own", since=page.version) as changes:
            fake.put(pipe("other"))
            big = fake.put({**pipe("b", own=""), "spec": {"x": "y" * 300_000}})
            fake.remove(first)
            fake.remove(big)
            seen = []
            async for change in changes:
                seen.append((change["type"], change["object"]["metadata"]["name"]))
                if len(seen) == 2:
                    fake.cut_watches()
            assert seen == [("ADDED", "b"), ("DELETED", "b")]


async def test_each_refusal_has_its_error() -> None:
    fake = FakeKube(version=200, oldest_version=150)
    async with serving(fake) as kube:

        async def watch() -> None:
            async with kube.watch(PIPES, "ns", since="100") as changes:
                async for _ in changes:
                    pytest.fail("nothing happened")

        with pytest.raises(Gone, match="too old"):
            await watch()
        fake.fail_once("GET", status(403, "Forbidden", "no"))
        with pytest.raises(Forbidden):
            await watch()
        fake.fail_once("GET", web.Response(status=503, text="busy"))
        with pytest.raises(Unavailable, match="busy"):
            await watch()
        fake.fail_once("GET", web.Response(text="<html>\n"))
        with pytest.raises(Unavailable, match="not a change of a watch"):
            await watch()
        error = '{"type": "ERROR", "object": {"kind": "Status", "code": 500, "message": "etcd is away"}}\n'
        fake.fail_once("GET", web.Response(text=error))
        with pytest.raises(Unavailable, match="etcd is away"):
            await watch()
        fake.missing_kinds.add("servepipelines")
        with pytest.raises(NotFound):
            await watch()


async def test_a_server_that_is_away_is_told_and_counted() -> None:
    counted: list[tuple[str, str, int]] = []
    fake = FakeKube()
    async with serving(fake, on_request=lambda verb, kind, code, _: counted.append((verb, kind, code))) as kube:
        async with kube.watch(PIPES, since="100"):
            pass
        object.__setattr__(kube.access, "url", "http://127.0.0.1:1")
        with pytest.raises(Unavailable):
            async with kube.watch(PIPES, since="100"):
                pytest.fail("nobody is there")
    assert counted == [("watch", "servepipelines", 200), ("watch", "servepipelines", 0)]


async def test_silence_ends_a_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    short = aiohttp.ClientTimeout(total=None, sock_read=0.05)
    monkeypatch.setattr("servepipe_operator.adapters.kube_watch.WATCH_TIMEOUT", short)
    fake = FakeKube()
    async with serving(fake) as kube, asyncio.timeout(10), kube.watch(PIPES, since="100") as changes:
        assert [change async for change in changes] == []
        fake.cut_watches()
