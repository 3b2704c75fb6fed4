"""What the commands do with a pipeline on this machine: `up`, and those that speak to what it runs."""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from servepipe.errors import MissingExtraError, RunError

if TYPE_CHECKING:
    from servepipe_operator.local.run_folder import Run

__all__ = ["apply", "call", "down", "logs", "require_extra", "scale", "status", "up"]

DOWN_TIMEOUT_S = 90.0
EXIT_TERMINATED = 143
NEEDED = ("ray", "aiohttp", "psutil", "rich")


def require_extra() -> None:
    """Raises `MissingExtraError` where what `up` and `deploy` need is not installed."""
    for module in NEEDED:
        try:
            found = importlib.util.find_spec(module)
        except ValueError:  # a module without a spec, which is there all the same
            continue
        if found is None:
            raise MissingExtraError(
                f"Running a pipeline on this machine needs {module!r}", fix='pip install "servepipe[local]"'
            )


def _target(arguments: argparse.Namespace, *, stream: Any = None) -> Run:
    """The run that a command addresses; it is named before anything else happens."""
    from servepipe_operator.local.run_folder import find_run

    run = find_run(arguments.pipeline)
    print(f"{run.pipeline} on this machine ({run.url or 'starting'})", file=stream or sys.stdout, flush=True)
    return run


def up(arguments: argparse.Namespace) -> int:
    require_extra()
    from servepipe_operator.local.sources import compile_file
    from servepipe_operator.local.supervisor import Options, Supervisor
    from servepipe_operator.view import view_for

    source = str(Path(arguments.file).absolute())

    async def go() -> int:
        # Until the run has handlers of its own SIGTERM ends the import like Ctrl-C does, with another code.
        terminated = asyncio.Event()
        loop, here = asyncio.get_running_loop(), asyncio.current_task()
        assert here is not None

        def terminate() -> None:
            terminated.set()
            here.cancel()

        loop.add_signal_handler(signal.SIGTERM, terminate)
        _print(f"Compiling {arguments.file}")  # importing models may take its time
        try:
            compiled = await compile_file(arguments.file, recompute=arguments.watch)
        except asyncio.CancelledError:
            if not terminated.is_set():
                raise
            return EXIT_TERMINATED
        options = Options(
            port=arguments.port,
            replicas_at_most=arguments.replicas_at_most,
            gpus=not arguments.no_gpu,
            reload=(lambda: compile_file(arguments.file, recompute=True)) if arguments.watch else None,
            source=source,
        )
        return await Supervisor(compiled, options, view_for(sys.stdout)).run()

    try:
        return asyncio.run(go())
    except KeyboardInterrupt:
        return 130


def status(arguments: argparse.Namespace) -> int:
    from servepipe_operator.local.client import ControlClient
    from servepipe_operator.view import follow, print_snapshot

    run = _target(arguments, stream=None if arguments.output == "table" else sys.stderr)
    client = ControlClient(run)
    if arguments.watch:
        return follow(client.status)
    print_snapshot(client.status(), arguments.output)
    return 0


def scale(arguments: argparse.Namespace) -> int:
    from servepipe_operator.local.client import ControlClient

    client = ControlClient(_target(arguments))
    for node, replicas in arguments.sizes:
        client.scale(node, replicas)
        _print(f"{node} scaled to {replicas}")
    return 0


def apply(arguments: argparse.Namespace) -> int:
    from servepipe_operator.local.client import ControlClient
    from servepipe_operator.local.run_folder import live_runs
    from servepipe_operator.local.sources import Compiled, compile_file

    def compiled_here() -> Compiled:
        # Where its errors have file and line; the run takes the copies of the sources, once.
        return asyncio.run(compile_file(arguments.file, copy=False))

    if arguments.pipeline is None and len(live_runs()) > 1:  # the file says which
        compiled = compiled_here()
        arguments.pipeline = compiled.pipeline
        run = _target(arguments)
    else:
        run = _target(arguments)
        compiled = compiled_here()
    ControlClient(run).apply(compiled.document, compiled.root)
    _print(f"{arguments.file} applied; `servepipe status --watch` shows how far it is")
    return 0


def logs(arguments: argparse.Namespace) -> int:
    from servepipe_operator.local.client import ControlClient

    run = _target(arguments, stream=sys.stderr)
    try:
        for line in ControlClient(run).logs(arguments.node, follow=arguments.follow, previous=arguments.previous):
            _print(line)
    except KeyboardInterrupt:
        return 130
    return 0


def call(arguments: argparse.Namespace) -> int:
    from servepipe_operator.bodies import body_of, show_answer
    from servepipe_operator.local.client import post_json

    run = _target(arguments, stream=sys.stderr)
    return show_answer(*post_json(run.url, body_of(arguments.body)))


def down(arguments: argparse.Namespace) -> int:
    from servepipe_operator.local.client import ControlClient
    from servepipe_operator.local.run_folder import RunFolder

    if arguments.pipeline is not None:
        folder = RunFolder.of(arguments.pipeline)
        if folder.read() is not None and not folder.held():
            folder.take()
            _print(f"{arguments.pipeline} on this machine (died without cleaning up)")
            _print(f"ended {len(folder.end_orphans())} processes that it left")
            return 0
    run = _target(arguments)
    folder = RunFolder.of(run.pipeline)
    ControlClient(run).down()
    deadline = time.monotonic() + DOWN_TIMEOUT_S
    while folder.held():
        if time.monotonic() > deadline:
            raise RunError(
                f"{run.pipeline!r} did not stop within {DOWN_TIMEOUT_S:.0f} s", fix=f"End process {run.supervisor.pid}."
            )
        time.sleep(0.1)
    _print(f"{run.pipeline} stopped")
    return 0


def _print(text: str) -> None:
    print(text, flush=True)
