"""History as files survives what happens to files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from servepipe_operator.adapters.file_history import FileHistory
from servepipe_operator.adapters.status_file import StatusFile
from servepipe_operator.engine.state import Record
from servepipe_operator.ports import ConflictError

NODE = Record("node", "m1--6f3a91c2", {"import": "diamond:Model", "args": [1, None, "ü"]})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def the_file(folder: Path, pattern: str) -> Path:
    return next(folder.glob(pattern))


FIRST = Record("checkpoint", "checkpoint", {"nodes": {}}, 1)
SECOND = Record("checkpoint", "checkpoint", {"nodes": {"m1": {"stable": "6f3a91c2"}}}, 2)


async def test_an_unknown_folder_is_an_empty_history(tmp_path: Path) -> None:
    assert await FileHistory(tmp_path / "none").list() == ()


async def test_records_come_back_in_order_and_in_another_process(tmp_path: Path) -> None:
    history = FileHistory(tmp_path / "history")
    for record in (SECOND, NODE, FIRST):
        await history.write(record)
    assert await FileHistory(tmp_path / "history").list() == (NODE, FIRST, SECOND)
    assert (tmp_path / "history").stat().st_mode & 0o777 == 0o700


async def test_records_are_immutable(tmp_path: Path) -> None:
    history = FileHistory(tmp_path)
    await history.write(FIRST)
    await history.write(FIRST)
    with pytest.raises(ConflictError, match="another checkpoint is there already"):
        await history.write(Record("checkpoint", "checkpoint", {"nodes": "other"}, 1))
    assert await history.list() == (FIRST,)


async def test_delete(tmp_path: Path) -> None:
    history = FileHistory(tmp_path)
    await history.write(FIRST)
    await history.delete(FIRST)
    await history.delete(FIRST)
    assert await history.list() == ()


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe", b"[]", b'{"kind": "node"}', b'{"kind": "x", "name": "n", "data": {}, "sequence": 1}'],
)
async def test_a_corrupt_file_is_reported_once_and_can_be_written_again(tmp_path: Path, content: bytes) -> None:
    reports: list[tuple[Path, str]] = []
    history = FileHistory(tmp_path, lambda path, reason: reports.append((path, reason)))
    await history.write(FIRST)
    await history.write(SECOND)
    broken = the_file(tmp_path, "checkpoint-00000002-*")
    broken.write_bytes(content)
    assert await history.list() == (FIRST,)
    assert await history.list() == (FIRST,)
    assert [path for path, _ in reports] == [broken]
    assert reports[0][1]
    await history.write(SECOND)
    assert await history.list() == (FIRST, SECOND)


async def test_a_record_under_another_records_name_is_corrupt(tmp_path: Path) -> None:
    reports: list[Path] = []
    history = FileHistory(tmp_path, lambda path, _: reports.append(path))
    await history.write(SECOND)
    path = the_file(tmp_path, "*.json")
    path.rename(path.with_name("checkpoint-00000009-checkpoint.json"))
    assert await history.list() == ()
    assert len(reports) == 1


async def test_what_a_crash_leaves_behind_is_ignored(tmp_path: Path) -> None:
    history = FileHistory(tmp_path)
    await history.write(FIRST)
    (tmp_path / ".checkpoint-00000002-checkpoint.json.77.tmp").write_text('{"kind": "chec', encoding="utf-8")
    assert await history.list() == (FIRST,)


async def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        await FileHistory(tmp_path).write(Record("node", "n", {"not JSON": {1, 2}}))
    assert names(tmp_path) == []


async def test_names_stay_inside_the_folder(tmp_path: Path) -> None:
    record = Record("node", "../../etc/x", {})
    history = FileHistory(tmp_path / "history")
    await history.write(record)
    assert await history.list() == (record,)
    assert names(tmp_path) == ["history"]


async def test_status_file(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    assert await StatusFile(path).read() == {}
    await StatusFile(path).write({"url": "http://x"})
    assert await StatusFile(path).read() == {"url": "http://x"}
    path.write_text(json.dumps([1]), encoding="utf-8")
    assert await StatusFile(path).read() == {}
    path.write_text("{", encoding="utf-8")
    assert await StatusFile(path).read() == {}
    assert names(tmp_path) == ["status.json"]
