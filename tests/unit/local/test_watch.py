"""A change is one change, and counts once it stands still."""

from __future__ import annotations

from pathlib import Path

from servepipe_operator.local.watch import Watched


def test_a_change_is_told_once_it_rests(tmp_path: Path) -> None:
    file = tmp_path / "pipeline.py"
    file.write_text("a", encoding="utf-8")
    watched = Watched([file])
    assert not watched.changed()
    file.write_text("ab", encoding="utf-8")
    assert not watched.changed()  # first seen
    assert watched.changed()  # and still so
    assert not watched.changed()


def test_an_editor_that_writes_in_steps(tmp_path: Path) -> None:
    file = tmp_path / "pipeline.py"
    file.write_text("a", encoding="utf-8")
    watched = Watched([file])
    file.unlink()
    assert not watched.changed()
    file.write_text("longer", encoding="utf-8")
    assert not watched.changed()
    assert watched.changed()


def test_a_change_that_is_taken_back_is_none(tmp_path: Path) -> None:
    file = tmp_path / "new.py"
    watched = Watched([file])
    file.write_text("a", encoding="utf-8")
    assert not watched.changed()
    file.unlink()
    assert not watched.changed()
    assert not watched.changed()


def test_files_that_join_do_not_count_as_changed_but_known_ones_do(tmp_path: Path) -> None:
    old, new = tmp_path / "old.py", tmp_path / "new.py"
    old.write_text("a", encoding="utf-8")
    new.write_text("a", encoding="utf-8")
    watched = Watched([old])
    old.write_text("changed while it was compiled", encoding="utf-8")
    watched.replace([old, new])
    assert watched.changed()
    assert not watched.changed()
