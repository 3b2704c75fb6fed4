"""Importing user code without running the pipeline.

A pipeline file is a script and a module at once. Run as a script it deploys; imported by ``servepipe compile`` or by a
replica it must only define things. So while such an import runs, `importing` is true in its thread, ``to_yaml`` does
nothing, and ``deploy`` and ``execute`` raise `EndImport`: the module ends there and stays usable with all that stood
before, as if the rest had been under ``if __name__ == "__main__"``.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.abc
import importlib.machinery
import os
import sys
import threading
import traceback
import types
from collections.abc import Iterator, Sequence
from pathlib import Path

__all__ = ["EndImport", "end_of_import", "executing_modules", "import_only", "importing", "only_imports"]


class EndImport(BaseException):
    """Raised by ``deploy`` and ``execute`` while a module is being imported; ends that module, nothing else.

    Not an Exception, so that user code does not catch it by accident; like SystemExit it is not an error.
    """


class _State(threading.local):
    active = 0
    """How many of our own imports this thread is inside of."""
    executing: list[str]
    """Names of the modules whose top level runs in this thread, outermost first."""

    def __init__(self) -> None:
        self.executing = []


_END_LINE = "__servepipe_end_line__"

_state = _State()
_for_ever = False


def importing() -> bool:
    """True while this thread runs the top level of a module that was imported by `load_app` or `load_object`."""
    return bool(_state.executing)


def executing_modules() -> list[str]:
    """Names of the modules whose top level runs in this thread in such an import, innermost first."""
    return _state.executing[::-1]


class _ImportOnlyLoader(importlib.machinery.SourceFileLoader):
    """Runs a module's source and takes `EndImport` as its end: importlib would drop the module otherwise."""

    def exec_module(self, module: types.ModuleType) -> None:
        _state.executing.append(module.__name__)
        try:
            super().exec_module(module)
        except EndImport as end:
            lines = [line for frame, line in traceback.walk_tb(end.__traceback__) if frame.f_globals is vars(module)]
            setattr(module, _END_LINE, lines[0])
        finally:
            _state.executing.pop()


def end_of_import(module: types.ModuleType) -> str | None:
    """``file:line`` of the module's top level where `EndImport` ended it; None for a module that ran to its end."""
    line = getattr(module, _END_LINE, None)
    return None if line is None else f"{os.path.relpath(str(module.__file__))}:{line}"


class _ImportOnlyFinder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not (_state.active or _for_ever):
            return None
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            spec = find(fullname, path, target) if find and finder is not self else None
            if spec is not None:
                if type(spec.loader) is importlib.machinery.SourceFileLoader:
                    spec.loader = _ImportOnlyLoader(spec.loader.name, spec.loader.path)
                return spec  # type: ignore[no-any-return]
        return None


_finder = _ImportOnlyFinder()


def _install_finder() -> None:
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)


def only_imports() -> None:
    """From now on every import of this process is one of a replica: no module's top level deploys or executes.

    For processes that serve, where unpickling a value imports a user's module behind everybody's back.
    """
    global _for_ever
    _install_finder()
    _for_ever = True


@contextlib.contextmanager
def import_only(root: Path | None) -> Iterator[None]:
    """Imports of this thread inside are import-only, with ``root`` first on ``sys.path`` from then on."""
    _install_finder()
    if root is not None:
        _put_first(root)
    importlib.invalidate_caches()
    _state.active += 1
    try:
        yield
    finally:
        _state.active -= 1


def _put_first(root: Path) -> None:
    folder = str(root)
    if sys.path[:1] != [folder]:
        sys.path[:] = [folder, *(entry for entry in sys.path if entry != folder)]
