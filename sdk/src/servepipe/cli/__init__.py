"""The ``servepipe`` command, installed as ``kubectl-servepipe`` too.

Each command is a function ``register(commands)`` that adds a parser and sets ``run`` on it, a function of the parsed
arguments that returns the exit status (None is 0). Other distributions add theirs by the entry point group
``servepipe.commands``; those are loaded only when the command asked for is not one of ours, so that ``compile``
does not pay for Ray or Kubernetes.

Exit status: 0 fine, 1 "different" (``diff``), 2 trouble, 130 interrupted. Trouble is told as what, where and fix, never
as a traceback, except that of the user's own code. ``SERVEPIPE_TRACEBACK=1`` shows all.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeAlias

from servepipe import __version__
from servepipe.cli.trouble import INTERRUPTED, TROUBLE, extra_missing_error, report, warnings_on_stderr
from servepipe.errors import ServePipeError

__all__ = ["main", "main_kubectl"]

Commands: TypeAlias = "argparse._SubParsersAction[Parser]"

_COMMANDS = {
    "compile": "servepipe.cli.compile",
    "validate": "servepipe.cli.inspect",
    "diff": "servepipe.cli.inspect",
    "graph": "servepipe.cli.inspect",
    "init": "servepipe.cli.init",
    "export": "servepipe.cli.export",
}
"""Our own commands and the modules whose ``register`` adds them."""

_DESCRIPTION = """\
Write a graph of models in Python, run it on Ray Serve, upgrade each model on its own.

  servepipe init hello               start a small project
  servepipe compile pipeline.py      write the ServePipeline that a Python file builds
  servepipe up pipeline.py           run it on this machine
  servepipe apply -n shop -f FILE    run it in a cluster that has the operator
"""


class UsageError(ServePipeError):
    """The command line itself is wrong; ``fix`` names the help to read."""


class Parser(argparse.ArgumentParser):
    """An argument parser that keeps the layout of its help texts and raises `UsageError`."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, fix=f"See `{self.prog} --help`.")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status. ``argv`` defaults to the process's arguments."""
    return _main("servepipe", sys.argv[1:] if argv is None else argv)


def main_kubectl(argv: Sequence[str] | None = None) -> int:
    """The same as a plug-in of kubectl: ``kubectl servepipe …`` addresses the cluster (``kube`` is set)."""
    return _main("kubectl servepipe", sys.argv[1:] if argv is None else argv, kube=True)


def _main(prog: str, argv: Sequence[str], *, kube: bool = False) -> int:
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115 - closed; else print() would turn to standard output
    try:
        with warnings_on_stderr():
            arguments = _parse(prog, argv, kube)
            if arguments.run is None:
                arguments.parser.print_help()
                return 0
            status = arguments.run(arguments)
            if sys.stdout is not None:
                sys.stdout.flush()
            return int(status or 0)
    except SystemExit as end:  # argparse after --help and --version
        return end.code if isinstance(end.code, int) else 0
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        _discard_output()  # the reader (`| head`) has gone
        return TROUBLE
    except Exception as error:
        if isinstance(error, OSError):
            _discard_output()
        return report(error)


def _discard_output() -> None:
    """Lest the interpreter complains at its end that it cannot write what is left."""
    if sys.stdout is None:
        return
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        return
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parse(prog: str, argv: Sequence[str], kube: bool) -> argparse.Namespace:
    parser = Parser(prog=prog, description=_DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"servepipe {__version__}")
    parser.set_defaults(run=None, parser=parser, kube=kube)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=Parser)
    wanted = next((argument for argument in argv if not argument.startswith("-")), None)
    for module in dict.fromkeys([_COMMANDS[wanted]] if wanted in _COMMANDS else _COMMANDS.values()):
        importlib.import_module(module).register(commands)
    if wanted not in _COMMANDS:
        _register_plugins(commands, wanted)
    if wanted is not None and wanted not in commands.choices:
        close = difflib.get_close_matches(wanted, commands.choices, n=1)
        hint = f"Did you mean {close[0]!r}? " if close else ""
        raise UsageError(f"there is no command {wanted!r}", fix=f"{hint}See `{prog} --help`.")
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        commands.choices.get(wanted or "", parser).error(f"unrecognized arguments: {' '.join(unknown)}")
    return arguments


def _register_plugins(commands: Commands, wanted: str | None) -> None:
    from importlib.metadata import entry_points

    failed: ServePipeError | None = None
    for plugin in sorted(entry_points(group="servepipe.commands")):
        try:
            register: Callable[[Commands], None] = plugin.load()
            register(commands)
        except ModuleNotFoundError as error:
            failed = extra_missing_error(error, plugin.name)
    if failed is not None and wanted is not None and wanted not in commands.choices:
        raise failed
