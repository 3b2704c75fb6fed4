"""Copies of sources: what of them is known to the next start, and what goes."""

from __future__ import annotations

from pathlib import Path

from servepipe.authoring.code import copy_sources
from servepipe_operator.adapters.file_history import FileHistory
from servepipe_operator.engine.state import Record
from servepipe_operator.local.code_store import digests_in, kept_code, prune_code, tidy_code


def copy(tmp_path: Path, text: str) -> tuple[str, Path]:
    (tmp_path / "project").mkdir(exist_ok=True)
    (tmp_path / "project" / "model.py").write_text(text, encoding="utf-8")
    return copy_sources("model", tmp_path / "project", tmp_path / "code")


def test_every_complete_copy_is_known(tmp_path: Path) -> None:
    assert kept_code(tmp_path / "code") == {}
    copies = {digest: str(folder) for digest, folder in (copy(tmp_path, "A = 1\n"), copy(tmp_path, "A = 2\n"))}
    (tmp_path / "code" / ".building-x").mkdir()
    (tmp_path / "code" / "README").write_text("", encoding="utf-8")
    assert len(copies) == 2
    assert kept_code(tmp_path / "code") == copies


def test_digests_are_found_wherever_a_record_names_them() -> None:
    data = {"code": "sha256:a", "graph": {"steps": [{"x": ["sha256:b"]}]}, "other": ["md5:c", 1, None]}
    assert digests_in([Record("node", "m1", data, 1), Record("spec", "s", {"code": "sha256:d"}, 2)]) == {
        "sha256:a",
        "sha256:b",
        "sha256:d",
    }


def test_what_nobody_names_goes_with_its_read_only_folders_and_nothing_else(tmp_path: Path) -> None:
    old, _ = copy(tmp_path, "A = 1\n")
    (tmp_path / "project" / "weights.bin").write_bytes(b"kept")  # linked to from the copy, never removed with it
    new, folder = copy(tmp_path, "A = 2\n")
    older, _ = copy(tmp_path, "A = 3\n")
    assert prune_code(tmp_path / "code", {new, "sha256:gone"}) == sorted([old, older])
    assert kept_code(tmp_path / "code") == {new: str(folder)}
    assert (tmp_path / "project" / "weights.bin").read_bytes() == b"kept"
    assert prune_code(tmp_path / "nowhere", ()) == []


async def test_history_decides_and_a_record_that_cannot_be_read_keeps_everything(tmp_path: Path) -> None:
    named, compiled, neither = (copy(tmp_path, f"A = {number}\n")[0] for number in range(3))
    history = tmp_path / "history"
    await FileHistory(history).write(Record("node", "m1", {"code": named}, 1))
    (history / "node-00000002-m1.json").write_text("{", encoding="utf-8")
    assert await tidy_code(tmp_path / "code", history, keep=[compiled]) == []
    (history / "node-00000002-m1.json").unlink()
    assert await tidy_code(tmp_path / "code", history, keep=[compiled]) == [neither]
    assert sorted(kept_code(tmp_path / "code")) == sorted([named, compiled])
