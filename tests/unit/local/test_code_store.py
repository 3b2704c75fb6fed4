"""Copies of sources stay for as long as a revision in history may be started from them."""

from __future__ import annotations

from pathlib import Path

import pytest

from servepipe.authoring.code import copy_sources
from servepipe_operator.engine.state import Record
from servepipe_operator.local.code_store import CodeStore


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    (folder / "data").mkdir(parents=True)
    return folder


def kept(project: Path, store: Path, text: str) -> str:
    (project / "m.py").write_text(text, encoding="utf-8")
    return copy_sources("m", project, store)[0]


def test_paths_are_those_of_all_complete_copies(project: Path, tmp_path: Path) -> None:
    store = tmp_path / "code"
    assert CodeStore(store).paths() == {}
    digests = [kept(project, store, text) for text in ("A = 1\n", "A = 2\n")]
    (store / ".building-x").mkdir()
    paths = CodeStore(store).paths()
    assert sorted(paths) == sorted(digests)
    assert [Path(paths[digest], "m.py").read_text() for digest in digests] == ["A = 1\n", "A = 2\n"]


def test_only_what_nothing_names_is_removed(project: Path, tmp_path: Path) -> None:
    store = tmp_path / "code"
    of_node, of_ingress, of_hook, about_to_run, unused = (kept(project, store, f"A = {n}\n") for n in range(5))
    records = [
        Record("node", "m1--1", {"scheme": 1, "identity": {"import": "m:A", "code": of_node}}),
        Record("node", "ingress--1", {"scheme": 1, "identity": {"codes": [of_ingress]}}),
        Record("spec", "s", {"graph": {"input": {"preprocessor": "m:f", "code": of_hook}, "steps": [{"args": [1]}]}}),
    ]
    assert CodeStore(store).prune(records, [about_to_run]) == [unused]
    assert sorted(CodeStore(store).paths()) == sorted([of_node, of_ingress, of_hook, about_to_run])
    assert (project / "data").is_dir()  # copies link to what lies beside the sources


def test_nothing_to_prune_where_there_is_no_store(tmp_path: Path) -> None:
    assert CodeStore(tmp_path / "code").prune([], []) == []
