"""What `servepipe call` sends and prints, wherever the pipeline runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from servepipe.errors import ServePipeError

__all__ = ["body_of", "show_answer"]


def show_answer(status: int, kind: str, body: bytes) -> int:
    """Print a pipeline's answer as it came; returns the exit status.

    Args:
        status: The HTTP status.
        kind: The content type without parameters.
    """
    good = 200 <= status < 300
    if kind == "application/json" or kind.startswith("text/"):
        print(body.decode(errors="replace"), file=sys.stdout if good else sys.stderr)
    else:
        sys.stdout.buffer.write(body)
    if not good:
        hint = ": the ingress does not run yet; see `servepipe status`" if _is_rays_own(status, body) else ""
        print(f"HTTP {status}{hint}", file=sys.stderr)
    return 0 if good else 1


def _is_rays_own(status: int, body: bytes) -> bool:
    """Whether Ray's proxy answered, which has no ingress to ask."""
    return status == 404 and b"/-/routes" in body


def body_of(argument: str) -> bytes:
    """The request's body: JSON, or with ``@`` that of a file. Raises `ServePipeError`."""
    if not argument.startswith("@"):
        try:
            json.loads(argument)
        except ValueError as error:
            raise ServePipeError(
                f"The argument is not JSON: {error}", where=argument, fix="Quote it for the shell, like '[1, 2, 3]'."
            ) from None
        return argument.encode()
    if argument == "@-":
        return sys.stdin.buffer.read()
    try:
        return Path(argument[1:]).read_bytes()
    except OSError as error:
        raise ServePipeError(f"The file cannot be read: {error.strerror}", where=argument[1:]) from error
