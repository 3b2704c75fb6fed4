"""Import user code the way every process must: by the same name, from the same folder, without running the pipeline."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
import traceback
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from servepipe.authoring import importing as _importing
from servepipe.authoring.code import in_library
from servepipe.authoring.importing import EndImport, end_of_import, import_only, importing, only_imports
from servepipe.authoring.importpath import (
    TARGET_ATTRIBUTE,
    import_path_of,
    import_root,
    importable,
    locate,
    module_name,
    root_of,
    source_file,
    unwrap,
)
from servepipe.errors import ImportPathError, ServePipeError

__all__ = [
    "TARGET_ATTRIBUTE",
    "EndImport",
    "app_of",
    "forgetting",
    "import_path_of",
    "import_root",
    "importable",
    "importing",
    "load_app",
    "load_module",
    "load_object",
    "locate",
    "module_name",
    "only_imports",
    "root_of",
    "unwrap",
]


def load_object(path: str, root: str | os.PathLike[str] | None = None) -> Any:
    """The object at ``"module:attr.sub"``, without the wrapper that ``remote`` put around it.

    Args:
        path: As made by `import_path_of`.
        root: Folder to put first on ``sys.path`` (and to leave there: the code may import more later).

    Raises:
        ImportPathError: The path is malformed, the module is not found or raises (its own exception is the cause), or
            it has no such attribute.
    """
    name, colon, attributes = path.partition(":")
    if not colon or not all(part.isidentifier() for part in (*name.split("."), *attributes.split("."))):
        raise ImportPathError(
            f"{path!r} is not an import path", fix='Write it as "module:name", e.g. "pipeline:Model".'
        )
    with import_only(None if root is None else Path(os.path.abspath(root))):  # noqa: PTH100
        found: Any = _import(name)
    for attribute in attributes.split("."):
        try:
            found = unwrap(getattr(unwrap(found), attribute))
        except AttributeError as error:
            module = sys.modules[name]
            end = end_of_import(module)
            raise ImportPathError(
                f"module {name!r} has no {attributes!r}" + (f" before line {end.rpartition(':')[2]}" if end else ""),
                where=end or getattr(module, "__file__", None) or "",
                fix=_END_FIX.format("what replicas import")
                if end
                else 'It must stand at the top level, outside of `if __name__ == "__main__"`.',
            ) from error
    return found


def load_module(file: str | os.PathLike[str]) -> types.ModuleType:
    """Import a Python file under its dotted name, with its import root first on ``sys.path``.

    Raises:
        ImportPathError: As in `locate`; another module has that name already; or the file raises (its own exception is
            the cause). A `ServePipeError` that the file raises passes through as it is.
    """
    root, name = locate(file)
    with import_only(root):
        module = _import(name)
    found = source_file(module)
    if found is None or not found.samefile(file):
        raise ImportPathError(
            f"{os.fspath(file)} cannot be imported: its name {name!r} belongs to {found or 'a built-in module'}",
            fix="Rename the file.",
        )
    return module


def _import(name: str) -> types.ModuleType:
    try:
        return importlib.import_module(name)
    except (ServePipeError, KeyboardInterrupt):
        raise
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise ImportPathError(
                f"module {name!r} is not found",
                fix=f"Put the folder that contains {name.split('.')[0]!r} on PYTHONPATH, or install it.",
            ) from error
        raise _import_failed(name, error) from error
    except (Exception, SystemExit) as error:
        raise _import_failed(name, error) from error


_OWN_FILES = (__file__, _importing.__file__)


def _import_failed(name: str, error: BaseException) -> ImportPathError:
    if isinstance(error, SyntaxError):
        file = error.filename or _file_of(name)
        where = f"{file}:{error.lineno}" if file and error.lineno else file
    else:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith("<frozen")]
        frames = [f for f in frames if f.filename not in _OWN_FILES]
        own = [f for f in frames if not in_library(Path(f.filename))]
        last = [*frames[-1:], *own[-1:]][-1:]
        where = f"{last[0].filename}:{last[0].lineno}" if last else ""
    message = str(error).partition("\n")[0]
    return ImportPathError(
        f"importing {name!r} raised {type(error).__name__}" + (f": {message}" if message else ""),
        where=where,
        fix=_how_to_import(error),
    )


def _how_to_import(error: BaseException) -> str:
    if isinstance(error, AttributeError) and error.name == "bind":
        return "Only what @remote wraps has .bind: put @remote above the class or function."
    return "Correct the file, or install what it needs."


def _file_of(module: str) -> str:
    """The file of a module that cannot even be parsed."""
    try:
        spec = importlib.util.find_spec(module)
    except Exception:
        return ""
    return (spec.origin or "") if spec is not None else ""


_END_FIX = (
    "`execute` and `deploy` at the top level end the import of a module. Write {} before that line, or put the line "
    'under `if __name__ == "__main__"`.'
)


def load_app(file: str | os.PathLike[str], attribute: str | None = None) -> Any:
    """The ``App`` that a Python file builds.

    Args:
        attribute: Its name in the module; None takes the only one.

    Raises:
        ImportPathError: As in `load_module`, or there is no such App, or more than one and no ``attribute``.
    """
    return app_of(load_module(file), attribute)


def app_of(module: types.ModuleType, attribute: str | None = None) -> Any:
    """The ``App`` in a module that is imported already; otherwise as `load_app`."""
    from servepipe.authoring.app import App

    file, end = os.path.relpath(module.__file__ or module.__name__), end_of_import(module)
    apps: dict[int, tuple[str, App]] = {}
    for name, value in vars(module).items():
        if isinstance(value, App):
            apps.setdefault(id(value), (name, value))
    names = [name for name, _ in apps.values()]
    if attribute is not None:
        found: Any = module
        for name in attribute.split("."):
            found = getattr(found, name, None)
        if isinstance(found, App):
            return found
        if found is None:
            what = f"the module has no {attribute!r}"
        else:
            what = f"{attribute!r} is of type {type(found).__name__}, not an App"
        fix = f"Its Apps: {', '.join(names)}." if names else "Name what `build(...)` returned."
        raise ImportPathError(what, where=file, fix=fix)
    if not apps and end is not None:
        raise ImportPathError(
            "the import ends here, and no App is built before", where=end, fix=_END_FIX.format("`app = build(...)`")
        )
    if not apps:
        raise ImportPathError(
            "the module builds no App",
            where=file,
            fix='Write `app = build(...)` at the top level, outside of `if __name__ == "__main__"`.',
        )
    if len(apps) > 1:
        raise ImportPathError(
            f"the module builds {len(apps)} Apps: {', '.join(names)}", where=file, fix=f"Name one: {file}:{names[0]}"
        )
    return next(iter(apps.values()))[1]


@contextlib.contextmanager
def forgetting() -> Iterator[None]:
    """Forget the project's modules that are imported inside, and where they came from, at the end.

    For tools that read several files one after the other, which may have the same module names.
    """
    modules, path = set(sys.modules), list(sys.path)
    try:
        yield
    finally:
        for name in set(sys.modules) - modules:
            file = source_file(sys.modules[name])
            if file is not None and not in_library(file) and name.partition(".")[0] != "servepipe":
                del sys.modules[name]
        sys.path[:] = path
