"""Where `App.deploy` runs a pipeline: a backend that another package registers as an entry point.

The SDK never imports the package that knows how; a missing one is an error with the line that installs it.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from inspect import signature
from pathlib import Path
from typing import Any, Protocol

from servepipe.errors import MissingExtraError, ServePipeError

__all__ = ["Backend", "backend"]

GROUP = "servepipe.backends"
_EXTRAS = {"local": "local", "kubernetes": "operator"}


class Backend(Protocol):
    """Runs one pipeline."""

    def deploy(self, resource: Any, *, import_root: Path | None) -> Any:
        """Start ``resource``, or apply it to what runs already, and return a handle to its ingress.

        Args:
            resource: The ``ServePipeline``.
            import_root: The folder from which the user's modules are imported.
        """
        ...

    def shutdown(self) -> None:
        """Stop what `deploy` started."""
        ...


def backend(name: str = "local", **options: Any) -> Backend:
    """A new backend.

    Args:
        name: ``local`` or ``kubernetes``.
        options: What it takes besides.

    Raises:
        MissingExtraError: None of that name is installed, or something that it needs is missing.
        ServePipeError: It does not take one of the options.
    """
    fix = f"pip install 'servepipe[{_EXTRAS.get(name, 'local')}]'"
    found: list[EntryPoint] = list(entry_points(group=GROUP, name=name))
    if not found:
        raise MissingExtraError(f"no backend {name!r} is installed to deploy to", fix=fix)
    try:
        made = found[0].load()
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"deploying needs {error.name!r}, which is not installed", fix=fix) from error
    try:
        signature(made).bind(**options)
    except TypeError as error:
        raise ServePipeError(f"the backend {name!r}: {error}", fix=f"It takes {_listed(made)}.") from None
    new: Backend = made(**options)
    return new


def _listed(made: Any) -> str:
    return ", ".join(signature(made).parameters) or "no options"
