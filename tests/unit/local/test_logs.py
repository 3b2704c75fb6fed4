"""Lines of replicas, found among Ray's files."""

from __future__ import annotations

import asyncio
from pathlib import Path

from servepipe_operator.engine.state import Application, Replica
from servepipe_operator.local.logs import ended_files, read_lines, replica_files

APPLICATION = Application("m1--aaaa", "RUNNING", replicas=(Replica("abcdefgh", "RUNNING", 77),))


def write(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


def make(folder: Path) -> None:
    write(folder, "worker-11-01-77.out", ":job_id:01\n:actor_name:X\nprinted\n")
    write(folder, "worker-11-01-77.err", "complained\nno end")
    write(folder, "worker-22-01-78.out", "another process\n")
    write(folder, "serve/replica_m1--aaaa_node_abcdefgh.log", "INFO served\n")
    write(folder, "serve/replica_m1--bbbb_node_zzz.log", "another revision\n")


async def test_lines_of_all_files(tmp_path: Path) -> None:
    make(tmp_path)
    lines = [line async for line in read_lines(lambda: replica_files(tmp_path, [APPLICATION]), for_ever=False)]
    assert sorted(lines) == [
        "aaaa/abcdef | INFO served",
        "aaaa/abcdef | complained",
        "aaaa/abcdef | no end",
        "aaaa/abcdef | printed",
    ]


async def test_lines_of_replicas_that_ended(tmp_path: Path) -> None:
    make(tmp_path)
    write(tmp_path, "serve/replica_m1--aaaa_node_yyyyyyyy.log", "failed\n")
    write(tmp_path, "serve/replica_m10--cccc_node_xxx.log", "another node\n")
    write(tmp_path, "serve/replica_ingress_ingress_wwwwwwww.log", "the ingress\n")
    lines = [x async for x in read_lines(lambda: ended_files(tmp_path, "m1--", [APPLICATION]), for_ever=False)]
    assert sorted(lines) == ["aaaa/yyyyyy | failed", "bbbb/zzz | another revision"]
    assert [*ended_files(tmp_path, "ingress", []).values()] == ["ingress/wwwwww"]


async def test_following_sees_what_comes(tmp_path: Path) -> None:
    make(tmp_path)
    lines = read_lines(lambda: replica_files(tmp_path, [APPLICATION]), for_ever=True)
    async with asyncio.timeout(20):
        seen = [await anext(lines) for _ in range(3)]
        write(tmp_path, "worker-11-01-77.err", " yet\n")
        write(tmp_path, "worker-33-01-77.err", "a new file\n")
        seen += [await anext(lines) for _ in range(2)]
    await lines.aclose()
    assert "aaaa/abcdef | no end yet" in seen
    assert "aaaa/abcdef | a new file" in seen


async def test_a_file_that_vanished_is_passed_over(tmp_path: Path) -> None:
    assert [x async for x in read_lines(lambda: {tmp_path / "gone": "p"}, for_ever=False)] == []
