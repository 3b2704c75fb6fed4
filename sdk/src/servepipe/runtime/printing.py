"""`print` in replicas: what user code prints into a file of its own arrives there as it is.

In replicas Serve replaces `print` by a function that leads to its log. Told to print into a file, that one hands all
values on as a single one, a tuple: ``print("one", 2, file=f)`` writes ``('one', 2)``. It hurts what writes through
`print` as well, such as tracebacks in logs. (Ray 2.58 to 2.60, ``redirected_print``.)
"""

from __future__ import annotations

import io
from typing import Any

from ray.serve._private import logging_utils

__all__ = ["mend_print"]


def mend_print() -> None:
    """Mend Serve's `print` in this process, if it needs that. To be called any number of times."""
    found = io.StringIO()
    try:
        logging_utils.redirected_print("a", 1, file=found)
        printed = logging_utils.buildin_print
    except (AttributeError, TypeError):
        return  # a Serve that does it in another way
    if found.getvalue() != "('a', 1)\n":
        return

    def print_all(values: tuple[Any, ...], **options: Any) -> None:
        printed(*values, **options)

    # Here, since Serve puts its function in place again whenever its log is configured.
    logging_utils.buildin_print = print_all
