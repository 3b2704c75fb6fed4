"""``python -m servepipe_operator.controller``, also the command ``servepipe-operator``."""

from __future__ import annotations

from typing import NoReturn

from servepipe_operator.controller.app import main as run
from servepipe_operator.controller.context import Context, Work

__all__ = ["main"]


def main() -> NoReturn:
    """See `app.main`."""
    run(_reconciler)


def _reconciler(context: Context) -> Work:
    # Only a leader needs it, and --help and wrong settings should be told at once.
    from servepipe_operator.controller.pipeline import PipelineReconciler

    return PipelineReconciler(context)


if __name__ == "__main__":
    main()
