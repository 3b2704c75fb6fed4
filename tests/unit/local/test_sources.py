"""From files to what can be run."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from small_pipeline import SMALL

from servepipe.errors import CodeMismatchError, ImportPathError, ResourceError, RunError, ServePipeError
from servepipe_operator.local.sources import compile_document, compile_file

MODELS = (
    "import helper\n\nclass Model:\n    def __init__(self, val): self.val = val\n    def forward(self, x): return x\n"
)


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "servepipe" / "runs"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "models.py").write_text(MODELS, encoding="utf-8")
    (folder / "helper.py").write_text("WORD = 1\n", encoding="utf-8")
    (folder / "pipeline.yaml").write_text(SMALL, encoding="utf-8")
    return folder


def content(folder: str, name: str) -> str:
    return Path(folder, name).read_text(encoding="utf-8")


def writable(folder: str, name: str) -> bool:
    return Path(folder, name).stat().st_mode & 0o222 != 0


async def test_a_file_without_digests_gets_them_and_copies(project: Path, state: Path) -> None:
    compiled = await compile_file(str(project / "pipeline.yaml"))
    assert (compiled.pipeline, compiled.root, compiled.notices) == ("small", str(project), ())
    [(digest, folder)] = compiled.code_paths.items()
    assert f"code: {digest}" in compiled.document
    assert folder == str(state / "small" / "code" / digest.removeprefix("sha256:"))
    assert (content(folder, "models.py"), writable(folder, "models.py")) == (MODELS, False)
    assert {path.name for path in compiled.files} == {"pipeline.yaml", "models.py", "helper.py"}


async def test_what_was_compiled_compiles_again_from_text(project: Path) -> None:
    compiled = await compile_file(str(project / "pipeline.yaml"))
    again = await compile_document(compiled.document, str(project))
    assert (again.document, again.code_paths) == (compiled.document, compiled.code_paths)


async def test_a_digest_that_does_not_fit_is_refused_or_recomputed(project: Path) -> None:
    compiled = await compile_file(str(project / "pipeline.yaml"))
    (project / "pipeline.yaml").write_text(compiled.document, encoding="utf-8")
    (project / "helper.py").write_text("WORD = 2\n", encoding="utf-8")
    with pytest.raises(CodeMismatchError, match=r"spec\.nodes\.m1\.code") as caught:
        await compile_file(str(project / "pipeline.yaml"))
    assert "--watch" in caught.value.fix
    recomputed = await compile_file(str(project / "pipeline.yaml"), recompute=True)
    assert recomputed.code_paths.keys().isdisjoint(compiled.code_paths)
    assert recomputed.notices[0].startswith("spec.nodes.m1: models has changed")
    # The file itself stays as it was.
    assert (project / "pipeline.yaml").read_text(encoding="utf-8") == compiled.document


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (lambda text: text.replace("models:Model", "nowhere:Model"), ImportPathError, "nowhere"),
        (lambda text: text.replace("args: [1]}", "argz: [1]}"), ResourceError, "argz"),
        (lambda text: text.replace("node: m1,", "node: m7,"), ServePipeError, "m7"),
        (lambda text: text.replace("kind: ServePipeline", "kind: Pod"), ResourceError, "ServePipeline"),
        (lambda text: "a: [", ResourceError, "pipeline.yaml"),
    ],
)
async def test_what_is_wrong_is_said(project: Path, change, kind: type[Exception], message: str) -> None:  # type: ignore[no-untyped-def]
    file = project / "pipeline.yaml"
    file.write_text(change(SMALL), encoding="utf-8")
    with pytest.raises(kind, match=message):
        await compile_file(str(file))


async def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="cannot be read"):
        await compile_file(str(tmp_path / "none.yaml"))
    with pytest.raises(ImportPathError, match="does not exist"):
        await compile_file(str(tmp_path / "none.py"))


async def test_a_state_folder_that_cannot_be_written_is_told_as_such(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder", encoding="utf-8")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    with pytest.raises(RunError, match="Not a directory") as caught:
        await compile_file(str(project / "pipeline.yaml"))
    assert caught.value.where.startswith(str(tmp_path / "file"))
    assert "XDG_STATE_HOME" in caught.value.fix


async def test_without_copies_nothing_is_written_and_the_digests_are_the_same(project: Path, state: Path) -> None:
    compiled = await compile_file(str(project / "pipeline.yaml"), copy=False)
    assert compiled.code_paths == {}
    assert not await asyncio.to_thread(state.exists)
    assert compiled.document == (await compile_file(str(project / "pipeline.yaml"))).document
