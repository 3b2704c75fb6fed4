"""Which sources a model is made of, and their digest.

A model's identity includes its code: its own module and the project's modules that it imports, directly or through each
other. They are found by reading the sources, not by importing them, so the answer depends on bytes alone: not on what
this process has imported already, on the working folder, on file times or on hash seeds.

Code of the standard library and of installed packages (including those installed as editable) is left out: the image
says which versions of these there are. So the same project has the same digest as a folder on the author's machine and
as a wheel in an image: there, what belongs to the same distribution as the model's module takes the project's place.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.machinery
import os
import re
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from pathlib import Path

from servepipe.errors import CodeMismatchError, ImportPathError

__all__ = [
    "PREFIX",
    "code_digest",
    "copies",
    "copy_sources",
    "digest_of",
    "in_library",
    "remove_copies",
    "source_files",
    "sources",
    "verify",
]

#: What every digest begins with.
PREFIX = "sha256:"
_COPY = re.compile(r"[0-9a-f]{64}")
_LIBRARY_FOLDERS = ("site-packages", "dist-packages")
_OWN_PACKAGES = ("servepipe", "servepipe_operator")


def code_digest(module: str, root: Path) -> str | None:
    """``"sha256:…"`` over `sources`; None where the module belongs to an installed package, which has a version.

    Raises:
        ImportPathError: There is no such module under ``root``.
    """
    files = source_files(module, root)
    if _is_library(root.absolute()) or module.partition(".")[0] in _OWN_PACKAGES:
        return None
    return digest_of(_read(files))


def sources(module: str, root: Path | None = None) -> dict[str, bytes]:
    """Path below the import root -> content, of ``module`` and the project modules that it needs; sorted by name.

    Args:
        module: Dotted name as in the resource's ``import``.
        root: Its import root; None looks for it along ``sys.path``, as an import would.

    Raises:
        ImportPathError: There is no such module.
    """
    return _read(source_files(module, root))


def source_files(module: str, root: Path | None = None, *, alone: bool = False) -> dict[str, Path]:
    """As `sources`, with the files instead of their content: what a watcher looks at.

    Args:
        alone: Everything that counts is below ``root``, whatever else is on ``sys.path``: a copy of `copy_sources`.
    """
    entries = [] if alone else [Path(entry or os.curdir).absolute() for entry in sys.path]
    if root is not None:
        entries.insert(0, root.absolute())
    project = _Project(module, list(dict.fromkeys(entries)))
    found: dict[str, _Found] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        for part in _with_parents(name):
            if part in found or (source := project.find(part)) is None:
                continue
            found[part] = source
            waiting.extend(_imports(source.file.read_bytes(), part, source.is_package))
    if module not in found:
        where = f" under {root}" if root is not None else ""
        raise ImportPathError(
            f"module {module!r} is not found{where}",
            fix="Put the folder that contains it on PYTHONPATH, or install it.",
        )
    return {found[name].relative: found[name].file for name in sorted(found)}


def digest_of(sources: dict[str, bytes]) -> str:
    """The digest of what `sources` returns."""
    total = hashlib.sha256()
    for relative, content in sources.items():
        total.update(f"{relative}\0{len(content)}\0".encode())
        total.update(content)
    return f"{PREFIX}{total.hexdigest()}"


def verify(expected: str, module: str, root: Path | None = None, *, node: str = "") -> None:
    """Make sure that the sources here are those that the resource was compiled from. Imports nothing.

    Args:
        expected: The resource's ``code``.
        node: Name of the node, for the message.

    Raises:
        CodeMismatchError: They are others; names both digests.
        ImportPathError: There is no such module here.
    """
    # In a copy, what has come to the project since then must not count.
    alone = root is not None and root.name == expected.removeprefix(PREFIX)
    files = source_files(module, root, alone=alone)
    actual = digest_of(_read(files))
    if actual != expected:
        raise CodeMismatchError(
            f"the sources of {module!r} are not those that the resource was compiled from: expected {expected}, "
            f"found {actual}",
            where=f"spec.nodes.{node}.code" if node else str(next(iter(files.values()))),
            fix="Compile again, or use the image (or folder) with the sources that were compiled. "
            f"Looked at {', '.join(files)}.",
        )


def copy_sources(module: str, root: Path, store: Path) -> tuple[str, Path]:
    """Keep a read-only copy of a model's sources, so that it can be started again after the originals changed.

    The copy is an import root of its own, ``store/<digest in hex>``, complete or not there at all. Everything else that
    lies beside the modules is not copied but linked to: labels and weights, for code that looks beside ``__file__``,
    and modules that are imported in a way that cannot be read from the sources.

    Returns:
        The digest and the folder.
    """
    files = source_files(module, root)
    contents = _read(files)
    digest = digest_of(contents)
    folder = store / digest.removeprefix(PREFIX)
    if not folder.is_dir():
        store.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=".building-", dir=store))
        try:
            for relative, content in contents.items():
                target = building / relative
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)
                target.chmod(0o444)
            building.rename(folder)
        except OSError:
            # Another process may have made the same copy in the meantime; what counts is that there is one.
            shutil.rmtree(building, ignore_errors=True)
            if not folder.is_dir():
                raise
    _link_data(folder, files)
    return digest, folder


def copies(store: Path) -> dict[str, Path]:
    """Every complete copy that `copy_sources` made in ``store``, by digest; {} where there is no such folder."""
    folders = sorted(store.iterdir()) if store.is_dir() else ()
    return {f"{PREFIX}{path.name}": path for path in folders if _COPY.fullmatch(path.name) and path.is_dir()}


def remove_copies(store: Path) -> None:
    """Remove ``store``, or one copy in it, though they are read-only; nothing happens when there is none."""
    for folder in (store, *store.rglob("*/")):
        if folder.is_dir() and not folder.is_symlink():
            folder.chmod(0o755)
    if store.exists():
        shutil.rmtree(store)


def _link_data(folder: Path, files: dict[str, Path]) -> None:
    copied = {(folder / relative).parent: file.parent for relative, file in files.items()}
    copied.setdefault(folder, _origin_of_root(files))
    for target, origin in copied.items():
        target.chmod(0o755)
        for entry in origin.iterdir():
            link = target / entry.name
            if entry.name.startswith((".", "__pycache__")) or entry.suffix == ".pyc":
                continue
            if link.is_symlink() and link.readlink() != entry:
                link.unlink()
            if not link.is_symlink() and not link.exists():
                link.symlink_to(entry)
        target.chmod(0o555)


def _origin_of_root(files: dict[str, Path]) -> Path:
    relative, file = next(iter(files.items()))
    return file.parents[relative.count("/")]


def _read(files: dict[str, Path]) -> dict[str, bytes]:
    return {relative: file.read_bytes() for relative, file in files.items()}


# Finding modules without importing them


class _Found:
    __slots__ = ("file", "is_package", "relative")

    def __init__(self, name: str, file: Path) -> None:
        self.file = file
        self.is_package = file.name == "__init__.py"
        self.relative = name.replace(".", "/") + ("/__init__.py" if self.is_package else ".py")


class _Project:
    """The modules that count as the project of ``module``, looked up along ``entries`` in the order of an import."""

    def __init__(self, module: str, entries: list[Path]) -> None:
        self._entries = entries
        self._top = module.partition(".")[0]
        located = _search(self._top, entries)
        self._home = located[0] if located else None
        editable = _editable_folders(tuple(entries))
        self._outside = {entry for entry in entries if _is_library(entry) or entry in editable}

    def find(self, name: str) -> _Found | None:
        """The source of a module of the project; None for libraries, extension modules and what does not exist."""
        top, *rest = name.split(".")
        located = _search(top, self._entries)
        if located is None or not self._belongs(top, located[0]):
            return None
        _, file, folders = located
        for part in rest:
            inner = _search(part, folders)
            if inner is None:
                return None
            _, file, folders = inner
        return _Found(name, file) if file is not None and file.suffix == ".py" else None

    def _belongs(self, top: str, entry: Path) -> bool:
        if top == self._top:
            return True
        if top in _OWN_PACKAGES:
            return False
        if entry == self._home and _is_library(entry):
            return top in _siblings_in_distribution(self._top)
        return entry == self._home or entry not in self._outside


def _search(name: str, folders: Sequence[Path]) -> tuple[Path, Path | None, list[Path]] | None:
    """Where an import finds ``name``: the folder it is in, its file (None: a namespace package), its own folders."""
    portions: list[Path] = []
    for folder in folders:
        package = folder / name / "__init__.py"
        if package.is_file():
            return folder, package, [package.parent]
        for suffix in (*importlib.machinery.EXTENSION_SUFFIXES, ".py"):
            file = folder / f"{name}{suffix}"
            if file.is_file():
                return folder, file, []
        if (folder / name).is_dir():
            portions.append(folder / name)
    return (portions[0].parent, None, portions) if portions else None


@cache
def _standard_library() -> tuple[Path, ...]:
    return tuple(Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib"))


def in_library(file: Path) -> bool:
    """True for files of the standard library and of installed packages."""
    if any(part in _LIBRARY_FOLDERS for part in file.parts):
        return True
    return any(folder in file.parents for folder in _standard_library())


def _is_library(folder: Path) -> bool:
    return in_library(folder / "module.py")


@cache
def _editable_folders(entries: tuple[Path, ...]) -> frozenset[Path]:
    """Folders that stand on the path because a package is installed as editable (a line of a ``.pth`` file)."""
    found: set[Path] = set()
    for entry in entries:
        if entry.name in _LIBRARY_FOLDERS and entry.is_dir():
            for pth in entry.glob("*.pth"):
                lines = pth.read_text(encoding="utf-8", errors="replace").splitlines()
                found.update((entry / line.strip()).absolute() for line in lines if not _is_code(line))
    return frozenset(found)


def _is_code(line: str) -> bool:
    return not line.strip() or line.startswith(("#", "import ", "import\t"))


@cache
def _siblings_in_distribution(top: str) -> frozenset[str]:
    """Top-level modules that the distribution which installed ``top`` brought along."""
    from importlib import metadata  # slow to import, and needed only where the project is installed itself

    owners = metadata.packages_distributions()
    own = set(owners.get(top, ()))
    return frozenset(name for name, distributions in owners.items() if own & set(distributions))


# Reading import statements


def _with_parents(name: str) -> Iterator[str]:
    parts = name.split(".")
    for count in range(1, len(parts) + 1):
        yield ".".join(parts[:count])


@lru_cache(maxsize=4096)
def _imports(source: bytes, name: str, is_package: bool) -> tuple[str, ...]:
    """Dotted names that a module may import, anywhere in it; some of them may be attributes instead of modules."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return ()  # importing it will say so; what else it would have needed does not matter then
    package = name if is_package else name.rpartition(".")[0]
    found: dict[str, None] = {}
    for statement in ast.walk(tree):
        match statement:
            case ast.Import(names=names):
                found.update((alias.name, None) for alias in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                base = _absolute(module, level, package)
                if base is not None:
                    found[base] = None
                    found.update((f"{base}.{alias.name}", None) for alias in names if alias.name != "*")
            case ast.Call(func=ast.Name(id="import_module") | ast.Attribute(attr="import_module"), args=[first, *_]):
                if isinstance(first, ast.Constant) and isinstance(first.value, str):
                    target = first.value.lstrip(".")
                    base = _absolute(target, len(first.value) - len(target), package)
                    if base:
                        found[base] = None
    return tuple(found)


def _absolute(module: str | None, level: int, package: str) -> str | None:
    """What ``from <level dots><module>`` means inside ``package``; None beyond the top-level package."""
    if level == 0:
        return module
    parts = package.split(".") if package else []
    if level > len(parts):
        return None
    parts = parts[: len(parts) - level + 1]
    return ".".join([*parts, module] if module else parts)
