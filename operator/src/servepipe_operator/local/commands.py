"""The commands of one machine: `up`, and those that speak to what it runs.

Registered by the entry point ``servepipe.commands``. Nothing heavy is imported before a command runs.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from servepipe.errors import MissingExtraError, RunError, ServePipeError

if TYPE_CHECKING:
    from servepipe_operator.local.run_folder import Run

__all__ = ["register"]

DOWN_TIMEOUT_S = 90.0
EXIT_TERMINATED = 143
_UP = """\
Run a pipeline on this machine, in a Ray of its own, until Ctrl-C or `servepipe down`.

  servepipe up pipeline.py
  servepipe up pipeline.yaml --watch --port 8080

Revisions and their code are kept in $XDG_STATE_HOME/servepipe (default: ~/.local/state/servepipe): the next start of
the same pipeline goes on from there."""
_EXAMPLES = {
    "status": "servepipe status -o json",
    "scale": "servepipe scale m1=3 ingress=2",
    "apply": "servepipe apply pipeline.py",
    "logs": "servepipe logs m1 -f",
    "call": "servepipe call '[1, 2, 3]'",
    "down": "servepipe down -p diamond",
}
NEEDED = ("ray", "aiohttp", "psutil", "rich")


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands to ``servepipe``; each sets ``run``, a function of the arguments that returns the exit code."""
    up = subparsers.add_parser("up", help="run a pipeline on this machine, in a Ray of its own", description=_UP)
    up.add_argument("file", metavar="FILE[:APP]", help="pipeline.yaml, or the pipeline.py that builds it")
    up.add_argument("--watch", action="store_true", help="apply the file again when it or a node's module changes")
    up.add_argument("--port", type=_port, metavar="N", help="HTTP port; default: 8000 or the next free one")
    up.add_argument("--replicas-at-most", type=_positive, metavar="N", help="no node gets more replicas than this")
    up.add_argument("--no-gpu", action="store_true", help="leave out the GPUs that nodes ask for")
    up.set_defaults(run=_up)

    status = _addressed(subparsers, "status", "show nodes, revisions, replicas and conditions", _status)
    status.add_argument("-o", "--output", choices=["table", "json", "yaml"], default="table")

    scale = _addressed(subparsers, "scale", "change the number of replicas of a node", _scale)
    scale.add_argument("sizes", metavar="NODE=N", nargs="+", type=_size)

    apply = _addressed(subparsers, "apply", "change what runs to what a file says", _apply)
    apply.add_argument("file", metavar="FILE[:APP]")

    logs = _addressed(subparsers, "logs", "show what a node's replicas print and log", _logs)
    logs.add_argument("node", metavar="NODE")
    logs.add_argument("-f", "--follow", action="store_true", help="go on with what is written from now on")

    call = _addressed(subparsers, "call", "send one request", _call)
    call.add_argument("body", metavar="JSON|@FILE", help="the request's body; @FILE reads it, @- from standard input")

    _addressed(subparsers, "down", "stop a run and everything it started", _down)


def _addressed(
    subparsers: argparse._SubParsersAction[argparse.ArgumentParser], name: str, what: str, run: Any
) -> argparse.ArgumentParser:
    description = f"{what[0].upper()}{what[1:]}.\n\n  {_EXAMPLES[name]}"
    parser = subparsers.add_parser(name, help=what, description=description)
    parser.add_argument("-p", "--pipeline", metavar="NAME", help="which run; needed where more than one goes on")
    parser.set_defaults(run=run)
    return parser


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text} is not between 1 and 65535")
    return int(text)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return int(text)


def _size(text: str) -> tuple[str, int]:
    node, equals, number = text.partition("=")
    if not node or not equals or not number.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not NODE=N, like m1=3")
    return node, int(number)


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

    if getattr(arguments, "kube", False):
        raise RunError(
            "This version speaks to pipelines on this machine only",
            fix="Use `servepipe` instead of `kubectl servepipe`.",
        )
    run = find_run(arguments.pipeline)
    print(f"{run.pipeline} on this machine ({run.url or 'starting'})", file=stream or sys.stdout, flush=True)
    return run


def _up(arguments: argparse.Namespace) -> int:
    require_extra()
    from servepipe_operator.local.sources import compile_file
    from servepipe_operator.local.supervisor import Options, Supervisor
    from servepipe_operator.local.view import view_for

    source = str(Path(arguments.file).absolute())

    async def up() -> int:
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
        return asyncio.run(up())
    except KeyboardInterrupt:
        return 130


def _status(arguments: argparse.Namespace) -> int:
    from servepipe_operator.local.client import ControlClient
    from servepipe_operator.local.view import HEADINGS, condition_lines, node_rows

    run = _target(arguments, stream=None if arguments.output == "table" else sys.stderr)
    snapshot = ControlClient(run).status()
    if arguments.output == "json":
        _print(json.dumps(snapshot, indent=2))
    elif arguments.output == "yaml":
        import yaml

        _print(yaml.safe_dump(snapshot, sort_keys=False, allow_unicode=True).rstrip())
    else:
        rows = [HEADINGS, *node_rows(snapshot["status"])]
        widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
        for row in rows:
            _print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        for line in condition_lines(snapshot["status"]):
            _print(line)
    return 0


def _scale(arguments: argparse.Namespace) -> int:
    from servepipe_operator.local.client import ControlClient

    client = ControlClient(_target(arguments))
    for node, replicas in arguments.sizes:
        client.scale(node, replicas)
        _print(f"{node} scaled to {replicas}")
    return 0


def _apply(arguments: argparse.Namespace) -> int:
    from servepipe_operator.local.client import ControlClient
    from servepipe_operator.local.sources import compile_file

    run = _target(arguments)
    # Compiled here, where its errors have file and line; the run takes the copies of the sources, once.
    compiled = asyncio.run(compile_file(arguments.file, copy=False))
    ControlClient(run).apply(compiled.document, compiled.root)
    _print(f"{arguments.file} applied")
    return 0


def _logs(arguments: argparse.Namespace) -> int:
    from servepipe_operator.local.client import ControlClient

    run = _target(arguments, stream=sys.stderr)
    try:
        for line in ControlClient(run).logs(arguments.node, follow=arguments.follow):
            _print(line)
    except KeyboardInterrupt:
        return 130
    return 0


def _call(arguments: argparse.Namespace) -> int:
    from servepipe_operator.local.client import post_json

    run = _target(arguments, stream=sys.stderr)
    status, kind, body = post_json(run.url, _body(arguments.body))
    good = 200 <= status < 300
    if kind == "application/json" or kind.startswith("text/"):
        print(body.decode(errors="replace"), file=sys.stdout if good else sys.stderr)
    else:
        sys.stdout.buffer.write(body)
    if not good:
        print(f"HTTP {status}", file=sys.stderr)  # noqa: T201
    return 0 if good else 1


def _body(argument: str) -> bytes:
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


def _down(arguments: argparse.Namespace) -> int:
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
    print(text, flush=True)  # noqa: T201 - this is a command's output
