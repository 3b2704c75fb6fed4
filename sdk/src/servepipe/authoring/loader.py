"""Import user code the way every process must: by the same name, from the same folder, without running the pipeline.

A pipeline file is a script and a module at once. Run as a script it deploys; imported by ``servepipe compile`` or by a
replica it must only define things. So while such an import runs, `importing` is true in its thread, ``to_yaml`` does
nothing, and ``deploy`` and ``execute`` raise `EndImport`: the module ends there and stays usable with all that stood
before, as if the rest had been under ``if __name__ == "__main__"``.

Names do not depend on how Python was started: a module's name is the dotted path from the first parent folder without
``__init__.py`` (its import root), whether it runs as ``__main__``, under ``-m`` or is imported.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.abc
import importlib.machinery
import inspect
import os
import sys
import threading
import traceback
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from servepipe.errors import ImportPathError, ServePipeError

__all__ = [
    "EndImport",
    "app_of",
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

TARGET_ATTRIBUTE = "__servepipe_target__"
"""Set by wrappers such as those of ``remote``: the plain class or function that they wrap."""

_MAIN_MODULES = ("__main__", "__mp_main__")


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


_state = _State()
_for_ever = False


def importing() -> bool:
    """True while this thread runs the top level of a module that was imported by `load_app` or `load_object`."""
    return bool(_state.executing)


class _ImportOnlyLoader(importlib.machinery.SourceFileLoader):
    """Runs a module's source and takes `EndImport` as its end: importlib would drop the module otherwise."""

    def exec_module(self, module: types.ModuleType) -> None:
        _state.executing.append(module.__name__)
        try:
            super().exec_module(module)
        except EndImport:
            pass
        finally:
            _state.executing.pop()


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
def _importing_only(root: Path | None) -> Iterator[None]:
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


# Where a module lives


def locate(file: str | os.PathLike[str]) -> tuple[Path, str]:
    """The import root of a Python file and the dotted name it is imported under from there.

    Symbolic links are not followed: a mounted ConfigMap is a link to a folder with another name.

    Raises:
        ImportPathError: The file does not exist, is no ``.py`` file, or has a name that no import statement can say.
    """
    path = Path(os.path.abspath(file))  # noqa: PTH100 - Path.absolute keeps "..", Path.resolve follows links
    if not path.is_file():
        what = "is a folder, not a Python file" if path.is_dir() else "does not exist"
        raise ImportPathError(f"{os.fspath(file)} {what}", fix="Name the .py file that builds the pipeline.")
    if path.suffix != ".py":
        raise ImportPathError(f"{os.fspath(file)} is not a Python file", fix="Name a file that ends in .py.")
    folder = root_of(path.parent)
    names = list(path.parent.relative_to(folder).parts)
    names += [] if path.name == "__init__.py" else [path.stem]
    for name in names:
        if not name.isidentifier():
            suggestion = "".join(c if c.isalnum() else "_" for c in name)
            raise ImportPathError(
                f"{os.fspath(file)} cannot be imported: {name!r} is not a Python name",
                fix=f"Rename it, for instance to {suggestion!r}.",
            )
    if not names:
        raise ImportPathError(f"{os.fspath(file)} has no module name", fix="Move it into a folder of its own.")
    return folder, ".".join(names)


def root_of(folder: Path) -> Path:
    """The first of ``folder`` and its parents that is no package."""
    while (folder / "__init__.py").is_file() and folder != folder.parent:
        folder = folder.parent
    return folder


def module_name(module: types.ModuleType) -> str:
    """The name under which another process imports ``module``; ``__main__`` is resolved through its file.

    Raises:
        ImportPathError: The module has no file to import it from (a notebook, ``python -c``, standard input).
    """
    file = _source_file(module)
    name = module.__name__
    if file is None:
        if name in _MAIN_MODULES or getattr(module, "__spec__", None) is None:
            raise ImportPathError(
                f"module {name!r} has no file that another process could import",
                fix="Move the class or function into a .py file and import it from there.",
            )
        return name
    if name not in _MAIN_MODULES and _in_library(file):
        return name
    derived = locate(file)[1]
    # Inside a namespace package (folders without __init__.py) the longer name is what the user's imports say.
    return name if name.endswith(f".{derived}") else derived


def import_root(module: types.ModuleType) -> Path | None:
    """The folder to put on ``sys.path`` so that ``module`` is found under `module_name`.

    None for modules that need no folder: built-in and frozen ones.
    """
    file = _source_file(module)
    if file is None:
        return None
    name = module_name(module)
    levels = name.count(".") + (1 if file.name == "__init__.py" else 0)
    return file.parents[levels]


def _source_file(module: types.ModuleType) -> Path | None:
    file = getattr(module, "__file__", None)
    if not file:
        return None
    path = Path(os.path.abspath(file))  # noqa: PTH100
    return path if path.is_file() else None


def _in_library(file: Path) -> bool:
    from servepipe.authoring.code import in_library

    return in_library(file)


# From an object to its import path


def unwrap(obj: Any) -> Any:
    """The plain class or function behind a wrapper of ours or of Ray's ``remote``; anything else as it is."""
    if inspect.getattr_static(obj, TARGET_ATTRIBUTE, None) is not None:
        return unwrap(getattr(obj, TARGET_ATTRIBUTE))
    if inspect.getattr_static(obj, "__ray_metadata__", None) is not None:
        modified = obj.__ray_metadata__.modified_class  # Ray subclasses the class that it wraps
        return getattr(modified, "__ray_actor_class__", modified)
    if type(obj).__module__ == "ray.remote_function" and hasattr(obj, "_function"):
        return obj._function
    return obj


def import_path_of(obj: Any) -> str:
    """``"module:Qual.name"`` under which another process finds ``obj``, a class, function or callable object.

    Raises:
        ImportPathError: As `importable`.
    """
    return importable(obj)[0]


def importable(obj: Any) -> tuple[str, types.ModuleType]:
    """The import path of ``obj``, and the module in this process that has it.

    The path is the object's own qualified name where looking that up gives the object back, else a module-level name
    that is bound to it (a class from a factory, a lambda with a name), looked for in its own module, then in the
    modules that are being executed, then in the project's other modules.

    Raises:
        ImportPathError: No such name: a lambda, a nested function, an object of ``__main__`` without a file.
    """
    target = unwrap(obj)
    home = getattr(target, "__module__", None) or type(target).__module__
    qualified = getattr(target, "__qualname__", None)
    module = sys.modules.get(home)
    if module is not None and qualified and "<" not in qualified and _is_at(module, qualified, target):
        return f"{module_name(module)}:{qualified}", module
    for module in _modules_to_search(home):
        for name, value in list(vars(module).items()):
            if value is target or (callable(value) and unwrap(value) is target):
                return f"{module_name(module)}:{name}", module
    raise _not_importable(target, home, qualified)


def _is_at(module: types.ModuleType, qualified: str, target: Any) -> bool:
    found: Any = module
    for name in qualified.split("."):
        found = unwrap(getattr(found, name, None))
    return found is target or (isinstance(target, types.MethodType) and found == target)


def _modules_to_search(home: str) -> Iterator[types.ModuleType]:
    seen: set[int] = set()
    named = [home, *reversed(_state.executing), *_MAIN_MODULES]
    others = sorted(name for name, module in sys.modules.items() if isinstance(module, types.ModuleType))
    for position, name in enumerate([*named, *others]):
        module = sys.modules.get(name)
        if not isinstance(module, types.ModuleType) or id(module) in seen:
            continue
        seen.add(id(module))
        file = _source_file(module)
        if file is not None and (position < len(named) or not _in_library(file)):
            yield module


def _not_importable(target: Any, home: str, qualified: str | None) -> ImportPathError:
    label = qualified or f"an object of type {type(target).__qualname__}"
    if home in _MAIN_MODULES and _source_file(sys.modules[home]) is None:
        why = "it was defined in a session without a file (a notebook, python -c or standard input)"
        fix = "Move it into a .py file and import it from there."
    elif qualified and "<lambda>" in qualified:
        why = "it is a lambda"
        fix = "Write it as a function at the top level of its module."
    elif qualified and "<locals>" in qualified:
        why = "it is defined inside a function"
        fix = (
            "Define it at the top level of its module; bind what a factory returns to a name there, for instance "
            f"`{(qualified.rpartition('.')[2]).capitalize()} = {qualified.partition('.')[0]}(...)`."
        )
    else:
        why = f"its module {home!r} has no name that is bound to it"
        fix = "Bind it to a name at the top level of a module."
    return ImportPathError(f"{label} cannot be imported by another process: {why}", where=_defined_at(target), fix=fix)


def _defined_at(target: Any) -> str:
    code = getattr(target, "__code__", None)
    if code is not None:
        return f"{os.path.relpath(code.co_filename)}:{code.co_firstlineno}" if os.path.exists(code.co_filename) else ""  # noqa: PTH110
    try:
        file, line = inspect.getsourcefile(target), inspect.getsourcelines(target)[1]
    except (TypeError, OSError):
        return ""
    return f"{os.path.relpath(file)}:{line}" if file else ""


# From an import path to its object


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
    with _importing_only(None if root is None else Path(os.path.abspath(root))):  # noqa: PTH100
        found: Any = _import(name)
    for attribute in attributes.split("."):
        try:
            found = unwrap(getattr(unwrap(found), attribute))
        except AttributeError as error:
            file = getattr(sys.modules[name], "__file__", None)
            raise ImportPathError(
                f"module {name!r} has no {attributes!r}",
                where=file or "",
                fix='It must stand before build(), outside of `if __name__ == "__main__"`.',
            ) from error
    return found


def load_module(file: str | os.PathLike[str]) -> types.ModuleType:
    """Import a Python file under its dotted name, with its import root first on ``sys.path``.

    Raises:
        ImportPathError: As in `locate`; another module has that name already; or the file raises (its own exception is
            the cause). A `ServePipeError` that the file raises passes through as it is.
    """
    root, name = locate(file)
    with _importing_only(root):
        module = _import(name)
    found = _source_file(module)
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


def _import_failed(name: str, error: BaseException) -> ImportPathError:
    if isinstance(error, SyntaxError) and error.filename:
        where = f"{error.filename}:{error.lineno}"
    else:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith("<frozen")]
        frames = [f for f in frames if f.filename != __file__]
        own = [f for f in frames if not _in_library(Path(f.filename))]
        last = [*frames[-1:], *own[-1:]][-1:]
        where = f"{last[0].filename}:{last[0].lineno}" if last else ""
    message = str(error).partition("\n")[0]
    return ImportPathError(
        f"importing {name!r} raised {type(error).__name__}" + (f": {message}" if message else ""),
        where=where,
        fix="Correct the file, or install what it needs.",
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

    file = os.path.relpath(module.__file__ or module.__name__)
    if attribute is not None:
        found: Any = module
        for name in attribute.split("."):
            found = getattr(found, name, None)
        if isinstance(found, App):
            return found
        what = "no such name" if found is None else f"a {type(found).__name__}, not an App"
        raise ImportPathError(f"{attribute!r} is {what}", where=file, fix="Name what `build(...)` returned.")
    apps: dict[int, tuple[str, Any]] = {}
    for name, value in vars(module).items():
        if isinstance(value, App):
            apps.setdefault(id(value), (name, value))
    if not apps:
        raise ImportPathError(
            "the module builds no App",
            where=file,
            fix='Write `app = build(...)` at the top level, outside of `if __name__ == "__main__"`.',
        )
    if len(apps) > 1:
        names = [name for name, _ in apps.values()]
        raise ImportPathError(
            f"the module builds {len(apps)} Apps: {', '.join(names)}", where=file, fix=f"Name one: {file}:{names[0]}"
        )
    return next(iter(apps.values()))[1]
