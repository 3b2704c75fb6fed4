"""History on ControllerRevisions: what is written is what is read, and nothing else."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from fake_kube import FakeKube, serving, status
from hypothesis import given, settings
from hypothesis import strategies as st

from servepipe_operator.adapters.kube_errors import Unavailable
from servepipe_operator.adapters.owner import Owner
from servepipe_operator.adapters.revision_history import (
    CONTROLLER_REVISIONS,
    KINDS,
    RecordError,
    RevisionHistory,
    pack,
    unpack,
)
from servepipe_operator.engine.state import Record
from servepipe_operator.ports import ConflictError

OWNER = Owner("servepipe.dev/v1alpha1", "ServePipeline", "ns", "p" * 63, "uid-1")
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**53), 2**53), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=8,
)
RECORDS = st.builds(
    Record,
    kind=st.sampled_from(sorted(KINDS)),
    name=st.text(max_size=300),
    data=st.dictionaries(st.text(max_size=4), JSON, max_size=3),
    sequence=st.integers(0, 10**9),
)


def key(record: Record) -> tuple[Any, ...]:
    return (record.sequence, record.kind, record.name)


@settings(max_examples=40, deadline=None)
@given(st.lists(RECORDS, max_size=6, unique_by=key), st.randoms())
def test_random_records_in_any_order_come_back_the_same(records: list[Record], chance: random.Random) -> None:
    async def check() -> None:
        fake = FakeKube()
        async with serving(fake) as kube:
            history = RevisionHistory(kube, OWNER)
            twice = [*records, *records]
            chance.shuffle(twice)
            for record in twice:
                await history.write(record)
            assert await history.list() == tuple(sorted(records, key=key))
            assert all(len(name) <= 253 and name.replace("-", "").isalnum() for _, name in fake.objects)
            for record in twice:
                await history.delete(record)
            assert await history.list() == ()

    asyncio.run(check())


async def test_another_record_under_the_same_name_is_an_error_that_says_so() -> None:
    fake = FakeKube()
    async with serving(fake) as kube:
        history = RevisionHistory(kube, OWNER)
        await history.write(Record("node", "a", {"x": 1}))
        with pytest.raises(ConflictError, match="something other than node 'a' of sequence 0"):
            await history.write(Record("node", "a", {"x": 2}))
        assert await history.list() == (Record("node", "a", {"x": 1}),)


async def test_a_write_whose_answer_was_lost_can_be_repeated() -> None:
    fake = FakeKube(lose_answers=lambda method, path: method == "POST")
    async with serving(fake) as kube:
        history = RevisionHistory(kube, OWNER)
        with pytest.raises(Unavailable):
            await history.write(Record("checkpoint", "c", {}, 3))
        fake.lose_answers = lambda method, path: False
        await history.write(Record("checkpoint", "c", {}, 3))
        assert len(await history.list()) == 1


async def test_what_is_foreign_is_ignored_and_what_is_broken_is_told_once() -> None:
    fake, told = FakeKube(), []
    async with serving(fake) as kube:
        history = RevisionHistory(kube, OWNER, lambda name, reason: told.append(reason))
        other = RevisionHistory(kube, Owner(OWNER.api_version, OWNER.kind, "ns", OWNER.name, "uid-2"))
        good = Record("node", "good", {})
        await history.write(good)
        await other.write(Record("node", "good", {"of": "another"}))
        await history.write(Record("node", "bad", {}))
        template = next(o for o in fake.objects.values() if unpack(o) == Record("node", "bad", {}))
        broken: list[Any] = [
            None,
            {},
            {"record": 3},
            {"encoding": "zip", "record": ""},
            {"encoding": "gzip+base64", "record": "%"},
            {"encoding": "gzip+base64", "record": "H4sI"},
            {"record": {"kind": "other", "name": "n", "data": {}, "sequence": 0}},
            {"record": {"kind": "node", "name": "n", "data": {}, "sequence": 0}},  # of another name
        ]
        for index, data in enumerate(broken):
            meta = {k: v for k, v in template["metadata"].items() if k != "uid"} | {"name": f"broken-{index}"}
            await kube.create(CONTROLLER_REVISIONS, template | {"metadata": meta, "data": data})
        stolen = {k: v for k, v in template["metadata"].items() if k not in ("uid", "ownerReferences")}
        await kube.create(CONTROLLER_REVISIONS, template | {"metadata": stolen | {"name": "stolen"}})
        for _ in range(2):
            assert await history.list() == (Record("node", "bad", {}), good)
    assert len(told) == len(broken)


def test_large_records_are_compressed_and_too_large_ones_refused() -> None:
    record = Record("spec", "s", {"text": "abc" * 400_000})
    data = pack(record)
    assert data["encoding"] == "gzip+base64"
    assert len(data["record"]) < 100_000
    assert unpack({"data": data}) == record
    noise = random.Random(1).randbytes(1_200_000).hex()
    with pytest.raises(RecordError, match="at most"):
        pack(Record("spec", "s", {"text": noise}))


async def test_a_server_error_is_not_taken_for_an_empty_history() -> None:
    fake = FakeKube()
    fake.fail_once("GET", status(500, "", "no"))
    async with serving(fake) as kube:
        with pytest.raises(Unavailable):
            await RevisionHistory(kube, OWNER).list()
