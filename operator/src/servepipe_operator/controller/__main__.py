"""``python -m servepipe_operator.controller``, also the command ``servepipe-operator``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, NoReturn

from servepipe.cli.trouble import report

if TYPE_CHECKING:
    from servepipe_operator.controller.context import Context, Work

__all__ = ["main"]


def main() -> NoReturn:
    """See `app.main`."""
    try:
        from servepipe_operator.controller.app import main as run
    except ModuleNotFoundError as error:  # of the extra `operator`
        sys.exit(report(error))
    run(_reconciler)


def _reconciler(context: Context) -> Work:
    # Only a leader needs it, and --help and wrong settings should be told at once.
    from servepipe_operator.controller.pipeline import PipelineReconciler

    return PipelineReconciler(context)


if __name__ == "__main__":
    main()
