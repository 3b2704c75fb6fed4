"""``python -m servepipe_operator.controller``, also the command ``servepipe-operator``."""

from __future__ import annotations

from importlib import import_module
from typing import NoReturn

from servepipe_operator.controller.app import main as run

__all__ = ["main"]


def main() -> NoReturn:
    """See `app.main`."""
    # Only a leader needs it, and --help and wrong settings should be told at once.
    run(lambda context: import_module("servepipe_operator.controller.pipeline").PipelineReconciler(context))


if __name__ == "__main__":
    main()
