import os
import subprocess
import sys
from pathlib import Path

import pytest

from servepipe.authoring import code
from servepipe.errors import CodeMismatchError, ImportPathError


def write(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


PROJECT = {
    "acme/__init__.py": "",
    "acme/pipeline.py": "from . import models\nfrom .text import clean as c\nimport json, yaml, acme.late\n",
    "acme/models.py": "def f():\n    from ...nowhere import x\n    import helpers\n",
    "acme/text/__init__.py": "from .clean import *\n",
    "acme/text/clean.py": "try:\n    import missing\nexcept ImportError:\n    import fallback\n",
    "acme/late.py": "import acme.pipeline\n",
    "acme/unrelated.py": "",
    "helpers.py": "import importlib\nplugin = importlib.import_module('plugin')\nimportlib.import_module(plugin)\n",
    "fallback.py": "",
    "plugin.py": "",
    "other.py": "",
}
NEEDED = {
    "acme/__init__.py",
    "acme/pipeline.py",
    "acme/models.py",
    "acme/text/__init__.py",
    "acme/text/clean.py",
    "acme/late.py",
    "helpers.py",
    "fallback.py",
    "plugin.py",
}


def test_the_project_modules_that_are_imported_anywhere_count(tmp_path: Path) -> None:
    write(tmp_path, PROJECT)
    assert set(code.sources("acme.pipeline", tmp_path)) == NEEDED


def test_a_change_of_any_needed_module_changes_the_digest_and_no_other_does(tmp_path: Path) -> None:
    write(tmp_path, PROJECT)
    before = code.code_digest("acme.pipeline", tmp_path)
    assert before is not None and before.startswith("sha256:") and len(before) == 7 + 64
    for name in PROJECT:
        write(tmp_path, {name: PROJECT[name] + "# changed\n"})
        after = code.code_digest("acme.pipeline", tmp_path)
        write(tmp_path, {name: PROJECT[name]})
        assert (after != before) == (name in NEEDED), name
    assert code.code_digest("acme.pipeline", tmp_path) == before


def test_line_endings_and_encodings_are_bytes_like_any_other(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_bytes(b"# coding: latin-1\nname = '\xe9'\nimport b\n")
    (tmp_path / "b.py").write_bytes(b"x = 1\r\n")
    assert code.sources("a", tmp_path)["b.py"] == b"x = 1\r\n"
    crlf = code.code_digest("a", tmp_path)
    (tmp_path / "b.py").write_bytes(b"x = 1\n")
    assert code.code_digest("a", tmp_path) != crlf


def test_moving_a_line_from_one_module_to_another_is_a_change() -> None:
    assert code.digest_of({"a.py": b"xy", "b.py": b""}) != code.digest_of({"a.py": b"x", "b.py": b"y"})


def test_file_times_working_folder_and_hash_seed_do_not_matter(tmp_path: Path) -> None:
    write(tmp_path / "here", PROJECT)
    write(tmp_path / "there", PROJECT)
    os.utime(tmp_path / "there" / "helpers.py", (1, 1))
    script = "import sys; from pathlib import Path; from servepipe.authoring.code import code_digest as d; "
    script += "print(d('acme.pipeline', Path(sys.argv[1])))"
    digests = set()
    for seed, root, cwd in [("1", "here", tmp_path), ("2", "there", tmp_path / "here"), ("3", "there", Path("/"))]:
        run = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / root)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=cwd,
            capture_output=True,
            text=True,
            check=True,
        )
        digests.add(run.stdout)
    assert len(digests) == 1


def test_a_module_that_does_not_parse_counts_with_its_bytes(tmp_path: Path) -> None:
    write(tmp_path, {"a.py": "import b", "b.py": "this is not python"})
    assert set(code.sources("a", tmp_path)) == {"a.py", "b.py"}


def test_namespace_packages_and_extension_modules(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "ns/part/m.py": "from ns.part import n\nfrom ns import fast\nimport ns.part.gone.deeper\n",
            "ns/part/n.py": "",
            "ns/fast.py": "shadowed by the extension module",
            "ns/fast.abi3.so": "",
        },
    )
    assert set(code.sources("ns.part.m", tmp_path)) == {"ns/part/m.py", "ns/part/n.py"}


def test_a_module_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ImportPathError, match=r"'gone' is not found under") as caught:
        code.sources("gone", tmp_path)
    assert "PYTHONPATH" in caught.value.fix
    write(tmp_path, {"pkg/__init__.py": ""})
    with pytest.raises(ImportPathError, match=r"'pkg.gone' is not found"):
        code.code_digest("pkg.gone", tmp_path)
    with pytest.raises(ImportPathError, match=r"'nowhere_at_all' is not found\n"):
        code.sources("nowhere_at_all")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A site-packages folder with a library, an editable install and a wheel of the project itself."""
    folder = tmp_path / "venv" / "lib" / "site-packages"
    write(folder, {"library.py": "", "acme/__init__.py": "import acme_models, library\n", "acme_models.py": ""})
    write(
        folder,
        {
            "acme-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: acme\nVersion: 1\n",
            "acme-1.dist-info/RECORD": "acme/__init__.py,,\nacme_models.py,,\n",
            "library-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: library\nVersion: 1\n",
            "library-1.dist-info/RECORD": "library.py,,\n",
            "_neighbour.pth": f"# a comment\nimport os\n{tmp_path / 'neighbour'}\n",
        },
    )
    write(tmp_path, {"neighbour/neighbour.py": "", "shared/shared.py": ""})
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "neighbour"), str(tmp_path / "shared")])
    code._siblings_in_distribution.cache_clear()
    return folder


def test_installed_and_editable_packages_are_left_out_and_other_folders_of_the_path_are_not(
    tmp_path: Path, site: Path
) -> None:
    write(tmp_path, {"project/p.py": "import library, neighbour, shared, servepipe, json, sys, math\n"})
    assert set(code.sources("p", tmp_path / "project")) == {"p.py", "shared.py"}


def test_a_project_has_the_same_digest_as_a_folder_and_as_a_wheel(tmp_path: Path, site: Path) -> None:
    write(tmp_path, {"src/acme/__init__.py": "import acme_models, library\n", "src/acme_models.py": ""})
    digest = code.code_digest("acme", tmp_path / "src")
    assert digest is not None
    code.verify(digest, "acme", site)
    code.verify(digest, "acme")
    assert code.code_digest("acme", site) is None


def test_an_editable_project_counts_as_itself(tmp_path: Path, site: Path) -> None:
    write(tmp_path, {"neighbour/neighbour.py": "import beside", "neighbour/beside.py": ""})
    assert set(code.sources("neighbour", tmp_path / "neighbour")) == {"neighbour.py", "beside.py"}


def test_verify_names_both_digests(tmp_path: Path) -> None:
    write(tmp_path, {"m.py": "import n", "n.py": ""})
    digest = code.code_digest("m", tmp_path)
    assert digest is not None
    code.verify(digest, "m", tmp_path)
    write(tmp_path, {"n.py": "x = 1"})
    with pytest.raises(CodeMismatchError) as caught:
        code.verify(digest, "m", tmp_path, node="m1")
    assert digest in caught.value.what
    assert str(code.code_digest("m", tmp_path)) in caught.value.what
    assert caught.value.where == "spec.nodes.m1.code"
    assert "m.py, n.py" in caught.value.fix
    with pytest.raises(CodeMismatchError) as caught:
        code.verify(digest, "m", tmp_path)
    assert caught.value.where == str(tmp_path / "m.py")


def test_a_copy_keeps_the_old_code_and_finds_the_data_beside_it(tmp_path: Path) -> None:
    files = {
        "pkg/__init__.py": "",
        "pkg/m.py": "from pathlib import Path\nfrom pkg.n import X\nL = Path(__file__).with_name('l.txt').read_text()",
        "pkg/n.py": "X = 'old'",
        "pkg/l.txt": "label",
        "weights/w.bin": "",
        ".hidden": "",
        "unrelated.py": "",
    }
    project, store = write(tmp_path / "project", files), tmp_path / "store"
    digest, folder = code.copy_sources("pkg.m", project, store)
    assert folder == store / digest.removeprefix("sha256:")
    assert digest == code.code_digest("pkg.m", project)
    write(project, {"pkg/n.py": "X = 'new'"})
    run = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; sys.path.insert(0, sys.argv[1]); import pkg.m as m; print(m.X, m.L)",
            folder,
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout == "old label\n"
    code.verify(digest, "pkg.m", folder)
    assert sorted(path.name for path in folder.iterdir()) == ["pkg", "unrelated.py", "weights"]
    assert (folder / "unrelated.py").is_symlink()
    assert sorted(path.name for path in store.iterdir()) == [folder.name]
    assert not (folder / "pkg" / "n.py").stat().st_mode & 0o222
    assert not (folder / "pkg").stat().st_mode & 0o222

    newer, other = code.copy_sources("pkg.m", project, store)
    assert newer != digest and other != folder
    assert (folder / "pkg" / "n.py").read_text() == "X = 'old'"


def test_what_comes_to_the_project_later_does_not_count_in_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = write(tmp_path / "project", {"m.py": "try:\n    import extra\nexcept ImportError:\n    pass\n"})
    digest, folder = code.copy_sources("m", project, tmp_path / "store")
    write(project, {"extra.py": ""})
    monkeypatch.syspath_prepend(str(project))
    code.verify(digest, "m", folder)
    with pytest.raises(CodeMismatchError):
        code.verify(digest, "m", project)


def test_modules_that_the_sources_do_not_name_are_linked(tmp_path: Path) -> None:
    project = write(
        tmp_path / "project",
        {"pkg/__init__.py": "", "pkg/m.py": "PLUGIN = __import__('pkg.plug', fromlist=['x'])", "pkg/plug.py": ""},
    )
    _, folder = code.copy_sources("pkg.m", project, tmp_path / "store")
    script = "import sys; sys.path.insert(0, sys.argv[1]); import pkg.m; print(pkg.m.PLUGIN.__name__)"
    run = subprocess.run([sys.executable, "-c", script, folder], capture_output=True, text=True, check=True)
    assert run.stdout == "pkg.plug\n"


def test_copying_again_keeps_the_copy_and_follows_a_project_that_moved(tmp_path: Path) -> None:
    project = write(tmp_path / "project", {"m.py": "", "data.txt": "1"})
    digest, folder = code.copy_sources("m", project, tmp_path / "store")
    inode = (folder / "m.py").stat().st_ino
    moved = project.rename(tmp_path / "moved")
    assert not (folder / "data.txt").exists()
    assert code.copy_sources("m", moved, tmp_path / "store") == (digest, folder)
    assert (folder / "data.txt").read_text() == "1"
    assert (folder / "m.py").stat().st_ino == inode
    code.remove_copies(tmp_path / "store")
    assert not (tmp_path / "store").exists()
    assert (moved / "data.txt").read_text() == "1"
    code.remove_copies(tmp_path / "store")


def test_a_copy_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = write(tmp_path / "project", {"m.py": ""})

    def no_space(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "rename", no_space)
    with pytest.raises(OSError, match="No space left"):
        code.copy_sources("m", project, tmp_path / "store")
    assert list((tmp_path / "store").iterdir()) == []


def test_two_processes_that_copy_at_once_share_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = write(tmp_path / "project", {"m.py": ""})
    rename = Path.rename

    def somebody_was_faster(self: Path, target: Path) -> Path:
        rename(self, target)
        self.mkdir()
        (self / "m.py").write_text("")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", somebody_was_faster)
    _, folder = code.copy_sources("m", project, tmp_path / "store")
    assert [path.name for path in (tmp_path / "store").iterdir()] == [folder.name]
