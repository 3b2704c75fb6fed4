"""The import path of an object: the same name in every process.

Names do not depend on how Python was started: a module's name is the dotted path from the first parent folder without
``__init__.py`` (its import root), whether it runs as ``__main__``, under ``-m`` or is imported.
"""

from __future__ import annotations

import inspect
import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from servepipe.authoring.code import in_library
from servepipe.authoring.importing import executing_modules
from servepipe.errors import ImportPathError

__all__ = [
    "TARGET_ATTRIBUTE",
    "import_path_of",
    "import_root",
    "importable",
    "locate",
    "module_name",
    "root_of",
    "source_file",
    "unwrap",
]

TARGET_ATTRIBUTE = "__servepipe_target__"
"""Set by wrappers such as those of ``remote``: the plain class or function that they wrap."""

_MAIN_MODULES = ("__main__", "__mp_main__")


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
    file = source_file(module)
    name = module.__name__
    if file is None:
        if name in _MAIN_MODULES or getattr(module, "__spec__", None) is None:
            raise ImportPathError(
                f"module {name!r} has no file that another process could import",
                fix="Move the class or function into a .py file and import it from there.",
            )
        return name
    if name not in _MAIN_MODULES and in_library(file):
        return name
    derived = locate(file)[1]
    # Inside a namespace package (folders without __init__.py) the longer name is what the user's imports say.
    return name if name.endswith(f".{derived}") else derived


def import_root(module: types.ModuleType) -> Path | None:
    """The folder to put on ``sys.path`` so that ``module`` is found under `module_name`.

    None for modules that need no folder: built-in and frozen ones.
    """
    file = source_file(module)
    if file is None:
        return None
    name = module_name(module)
    levels = name.count(".") + (1 if file.name == "__init__.py" else 0)
    return file.parents[levels]


def source_file(module: types.ModuleType) -> Path | None:
    """The file that a module was made from, None where there is none (any more)."""
    file = getattr(module, "__file__", None)
    if not file:
        return None
    path = Path(os.path.abspath(file))  # noqa: PTH100
    return path if path.is_file() else None


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
    named = [home, *executing_modules(), *_MAIN_MODULES]
    others = sorted(name for name, module in sys.modules.items() if isinstance(module, types.ModuleType))
    for position, name in enumerate([*named, *others]):
        module = sys.modules.get(name)
        if not isinstance(module, types.ModuleType) or id(module) in seen:
            continue
        seen.add(id(module))
        file = source_file(module)
        if file is not None and (position < len(named) or not in_library(file)):
            yield module


def _not_importable(target: Any, home: str, qualified: str | None) -> ImportPathError:
    label = qualified or f"an object of type {type(target).__qualname__}"
    if home in _MAIN_MODULES and source_file(sys.modules[home]) is None:
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
