"""The commands that speak to something that runs, and where they look for it.

Registered by the entry point ``servepipe.commands``. A command that makes sense for both is one parser; ``--kube``,
``--context``, ``-n``, ``--kubeconfig`` or being called as ``kubectl servepipe`` turn it to the cluster, otherwise it is
about this machine. Nothing heavy is imported before a command runs.
"""

from __future__ import annotations

import argparse
import importlib
import re
from collections.abc import Callable
from typing import TypeAlias

from servepipe.cli.target import add_cluster_options, targets_cluster
from servepipe.cli.trouble import extra_missing_error
from servepipe.errors import MissingExtraError, RunError, ServePipeError

__all__ = ["register"]

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
Run: TypeAlias = Callable[[argparse.Namespace], int]

_LOCAL = "servepipe_operator.local.commands"
_CLUSTER = "servepipe_operator.cluster"
_WAIT_S = 900.0
#: Packages of the extra `local`, which who works with clusters only does not need.
_OF_LOCAL = frozenset({"aiohttp", "psutil", "ray", "rich"})
_THERE = "For a pipeline in a cluster add --kube, --context or -n."

_UP = """\
Run a pipeline on this machine, in a Ray of its own, until Ctrl-C or `servepipe down`.

  servepipe up pipeline.py
  servepipe up pipeline.yaml --watch --port 8080

Revisions and their code are kept in $XDG_STATE_HOME/servepipe (default: ~/.local/state/servepipe): the next start of
the same pipeline goes on from there."""
_APPLY = """\
Change what runs to what a file says.

  servepipe apply pipeline.py                    what `servepipe up` runs on this machine
  servepipe apply --context prod -f pipeline.yaml
  servepipe apply -n shop -f pipeline.yaml --dry-run

In a cluster: shows the difference, applies it server-side, and waits until it serves. `replicas`, `autoscaling`,
`upgrade`, `suspend` and `paused` stay where somebody else set them; any other field that somebody else set and the file
changes is refused, with who holds it. --take-ownership lets the file win.

Exit status: 0 done and ready, 1 applied but the operator says that it cannot get there, 2 not applied, 3 applied and
not ready by the deadline, 130 interrupted (what was applied goes on)."""
_STATUS = """\
Show nodes, revisions, replicas and conditions.

  servepipe status                 of what runs on this machine
  servepipe status -n shop         of the pipelines of a namespace
  servepipe status diamond --kube --watch"""
_EXAMPLES = {
    "scale": "servepipe scale m1=3 ingress=2\n  servepipe scale m1=3 -n shop",
    "logs": "servepipe logs m1 -f\n  servepipe logs m1 -n shop --previous",
    "call": "servepipe call '[1, 2, 3]'\n  servepipe call @order.json -n shop",
    "down": "servepipe down diamond",
    "suspend": "servepipe suspend diamond -n shop",
    "pause": "servepipe pause diamond -n shop",
    "resume": "servepipe resume diamond -n shop",
    "delete": "servepipe delete diamond -n shop --wait",
}


def register(subparsers: Subparsers) -> None:
    """Add the commands to ``servepipe``; each sets ``run``, a function of the arguments that returns the exit code."""
    up = subparsers.add_parser("up", help="run a pipeline on this machine, in a Ray of its own", description=_UP)
    up.add_argument("file", metavar="FILE[:APP]", help="pipeline.yaml, or the pipeline.py that builds it")
    up.add_argument("--watch", action="store_true", help="apply the file again when it or a node's module changes")
    up.add_argument("--port", type=_port, metavar="N", help="HTTP port; default: 8000 or the next free one")
    up.add_argument("--replicas-at-most", type=_positive, metavar="N", help="no node gets more replicas than this")
    up.add_argument("--no-gpu", action="store_true", help="leave out the GPUs that nodes ask for")
    up.set_defaults(run=_here("up", "`kubectl servepipe apply` puts a pipeline into a cluster."))

    status = _both(subparsers, "status", "show nodes, revisions, replicas and conditions", _STATUS)
    status.add_argument("name", metavar="NAME", nargs="?", help="the pipeline, the same as -p NAME")
    status.add_argument("-w", "--watch", action="store_true", help="go on until Ctrl-C")
    status.add_argument("-o", "--output", choices=["table", "json", "yaml"], default="table", help="default: table")

    scale = _both(subparsers, "scale", "change the number of replicas of a node")
    scale.add_argument("sizes", metavar="NODE=N", nargs="+", type=_size, help="a node, or ingress; 0 turns a node off")

    _add_apply(subparsers)

    logs = _both(subparsers, "logs", "show what a node's replicas print and log")
    logs.add_argument("node", metavar="NODE", help="a node, or ingress")
    logs.add_argument("-f", "--follow", action="store_true", help="go on with what is written from now on")
    logs.add_argument("--previous", action="store_true", help="replicas that ended, failed ones too")
    logs.add_argument("--tail", type=_positive, metavar="N", help="lines of each file; default: 1000 (cluster)")

    call = _both(subparsers, "call", "send one request")
    call.add_argument("body", metavar="JSON|@FILE", help="the request's body; @FILE reads it, @- from standard input")

    down = subparsers.add_parser(
        "down",
        help="stop a run on this machine and everything it started",
        description=_described("down", "stop a run on this machine and everything it started"),
    )
    down.add_argument("name", metavar="NAME", nargs="?", help="the pipeline, the same as -p NAME")
    down.add_argument("-p", "--pipeline", metavar="NAME", help="which run; needed where more than one goes on")
    down.set_defaults(run=_here("down", "`kubectl servepipe delete` removes a pipeline from a cluster."))

    _cluster(subparsers, "suspend", "free the pods of a pipeline in a cluster; its definition and history stay")
    _cluster(subparsers, "pause", "have the operator change nothing of a pipeline, and only report")
    _cluster(subparsers, "resume", "end `suspend` and `pause`")
    delete = _cluster(subparsers, "delete", "delete a pipeline from a cluster, with everything that is its")
    delete.add_argument("--wait", action="store_true", help="until everything that is its is gone")
    delete.add_argument("--timeout", type=_seconds, default=_WAIT_S, metavar="T", help="of --wait; default: 15m")


def _add_apply(subparsers: Subparsers) -> None:
    apply = _both(subparsers, "apply", "change what runs to what a file says", _APPLY)
    what = "pipeline.yaml, the pipeline.py that builds it, or - for YAML from standard input (cluster)"
    apply.add_argument("file", metavar="FILE[:APP]", nargs="?", help=what)
    apply.add_argument("-f", "--filename", metavar="FILE[:APP]", help="the same")
    apply.add_argument("--dry-run", action="store_true", help="show the difference and change nothing (cluster)")
    apply.add_argument("--take-ownership", action="store_true", help="the file wins over everybody (cluster)")
    apply.add_argument("--no-wait", dest="wait", action="store_false", help="do not wait until it serves (cluster)")
    apply.add_argument(
        "--timeout", type=_seconds, metavar="T", help="how long to wait: 90s, 15m (the default), 1h (cluster)"
    )


def _both(subparsers: Subparsers, name: str, what: str, description: str | None = None) -> argparse.ArgumentParser:
    """A command for a run on this machine and for a pipeline in a cluster."""
    parser = subparsers.add_parser(name, help=what, description=description or _described(name, what))
    parser.add_argument("-p", "--pipeline", metavar="NAME", help="which one; needed where there is more than one")
    add_cluster_options(parser, only=False)
    parser.set_defaults(run=_dispatched(name))
    return parser


def _cluster(subparsers: Subparsers, name: str, what: str) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(name, help=what, description=_described(name, what))
    parser.add_argument("pipeline", metavar="NAME", help="the pipeline")
    add_cluster_options(parser)
    parser.set_defaults(run=_implemented(_HOMES[name], name))
    return parser


def _described(name: str, what: str) -> str:
    return f"{what[0].upper()}{what[1:]}.\n\n  {_EXAMPLES[name]}"


_HOMES = {
    "apply": f"{_CLUSTER}.apply",
    "status": f"{_CLUSTER}.status",
    "scale": f"{_CLUSTER}.operate",
    "suspend": f"{_CLUSTER}.operate",
    "pause": f"{_CLUSTER}.operate",
    "resume": f"{_CLUSTER}.operate",
    "delete": f"{_CLUSTER}.operate",
    "logs": f"{_CLUSTER}.logs",
    "call": f"{_CLUSTER}.call",
}
"""Where the cluster's side of each command is."""


def _implemented(module: str, name: str) -> Run:
    def run(arguments: argparse.Namespace) -> int:
        function: Run = getattr(importlib.import_module(module), name)
        return function(arguments)

    return run


def _here(name: str, there: str) -> Run:
    """A command for this machine only; ``there`` says what one would use for a cluster."""
    run_it = _implemented(_LOCAL, name)

    def run(arguments: argparse.Namespace) -> int:
        if targets_cluster(arguments):
            raise ServePipeError(f"`{name}` is about this machine", fix=f"Call it as `servepipe {name}`. {there}")
        _normalise(arguments)
        return run_it(arguments)

    return run


def _dispatched(name: str) -> Run:
    here, there = _implemented(_LOCAL, name), _implemented(_HOMES[name], name)

    def run(arguments: argparse.Namespace) -> int:
        _normalise(arguments)
        if targets_cluster(arguments):
            return there(arguments)
        _refuse_cluster_options(arguments)
        try:
            return here(arguments)
        except RunError as error:
            if "on this machine" not in error.what:
                raise
            raise RunError(error.what, where=error.where, fix=f"{error.fix}\n{_THERE}".lstrip()) from error
        except ModuleNotFoundError as error:
            if error.name not in _OF_LOCAL:
                raise
            missing = extra_missing_error(error)
            raise MissingExtraError(missing.what, fix=f"{missing.fix}\n{_THERE}") from error

    return run


def _normalise(arguments: argparse.Namespace) -> None:
    """Two ways to say the same become one."""
    for first, second, what in (("pipeline", "name", "-p NAME or NAME"), ("file", "filename", "FILE or -f FILE")):
        if not hasattr(arguments, second):
            continue
        one, other = getattr(arguments, first), getattr(arguments, second)
        if one is not None and other is not None and one != other:
            raise ServePipeError(f"{one!r} and {other!r} are two", fix=f"Give one of them: {what}.")
        setattr(arguments, first, one if one is not None else other)
    if getattr(arguments, "file", "") is None:
        raise ServePipeError("There is no file to apply", fix="Give one: servepipe apply FILE.")
    if "timeout" in arguments and targets_cluster(arguments) and arguments.timeout is None:
        arguments.timeout = _WAIT_S


def _refuse_cluster_options(arguments: argparse.Namespace) -> None:
    given = [
        f"--{name.replace('_', '-')}"
        for name in ("dry_run", "take_ownership", "timeout", "tail")
        if getattr(arguments, name, None)
    ]
    given += ["--no-wait"] if not getattr(arguments, "wait", True) else []
    if given:
        raise ServePipeError(
            f"{', '.join(given)}: for a pipeline in a cluster only", fix="Say which with --kube, --context or -n."
        )


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


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+)([smh]?)", text)
    if found is None or not int(found[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is not a time, like 90s, 15m or 1h")
    return int(found[1]) * {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}[found[2]]
