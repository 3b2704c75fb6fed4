"""The child process behind `app.deploy()`: a supervisor whose life line is its standard input.

It ends, with everything it started, when its parent closes the pipe or dies, however that happens.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from typing import Any

from servepipe.errors import ServePipeError
from servepipe_operator.local.sources import compile_document
from servepipe_operator.local.supervisor import Options, Supervisor
from servepipe_operator.view import PlainView

__all__ = ["main"]


def main() -> None:
    """Run what the one line on standard input says until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in the terminal is the parent's affair
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    line = sys.stdin.buffer.readline()
    if not line:
        return
    try:
        asyncio.run(_run(json.loads(line)))
    except ServePipeError as error:
        problem = {"type": type(error).__name__, "what": error.what, "where": error.where, "fix": error.fix}
        answers.write(json.dumps({"error": problem}) + "\n")
        sys.exit(1)


async def _run(request: dict[str, Any]) -> None:
    compiled = await compile_document(request["document"], request["folder"])
    supervisor = Supervisor(compiled, Options(source=request["source"]), PlainView(sys.stderr))
    loop = asyncio.get_running_loop()

    def parent_is_gone() -> None:
        if not os.read(sys.stdin.fileno(), 4096):
            loop.remove_reader(sys.stdin.fileno())
            supervisor.stop()

    loop.add_reader(sys.stdin.fileno(), parent_is_gone)
    await supervisor.run()


if __name__ == "__main__":
    main()
