"""What all commands have in common: help, errors, extras, exit statuses."""

import argparse
import io
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

import servepipe
from servepipe import cli
from servepipe.cli import main, main_kubectl, trouble
from servepipe.errors import RunError

Run = Callable[..., Any]
Write = Callable[[str, str], Path]


@pytest.mark.parametrize(
    "command",
    [
        *["compile", "validate", "diff", "graph", "init", "export serve", "export rayservice"],
        *["up", "status", "scale", "apply", "logs", "call", "down"],
    ],
)
def test_every_help_has_an_example(run: Run, command: str) -> None:
    ran = run(*command.split(), "--help")
    assert ran.status == 0
    assert f"\n  servepipe {command}" in ran.out or f"| servepipe {command}" in ran.out


def test_without_a_command_there_is_help(run: Run) -> None:
    for arguments in ([], ["--help"]):
        ran = run(*arguments)
        assert ran.status == 0
        for command in ("compile", "validate", "diff", "graph", "init", "export", "up", "status", "down"):
            assert f"\n    {command} " in ran.out
    assert run("export", "--help").status == 0


def test_the_version(run: Run) -> None:
    assert run("--version").out == f"servepipe {servepipe.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message", "fix"),
    [
        (["compil"], "there is no command 'compil'", "Did you mean 'compile'? See `servepipe --help`."),
        (["xyzzy"], "there is no command 'xyzzy'", "See `servepipe --help`."),
        (["compile"], "the following arguments are required: FILE[:APP]", "See `servepipe compile --help`."),
        (["compile", "f.py", "--outpt", "x"], "unrecognized arguments: --outpt x", "See `servepipe compile --help`."),
        (["--colour"], "unrecognized arguments: --colour", "See `servepipe --help`."),
        (
            ["graph", "f.py", "--format", "png"],
            "argument --format: invalid choice: 'png'",
            "See `servepipe graph --help`.",
        ),
        (["export"], "the following arguments are required: TARGET", "See `servepipe export --help`."),
    ],
)
def test_a_wrong_command_line(run: Run, arguments: list[str], message: str, fix: str) -> None:
    ran = run(*arguments)
    assert ran.status == 2
    assert ran.err.startswith(f"error: {message}")
    assert ran.err.endswith(f"  fix:   {fix}\n")
    assert ran.out == ""


def test_kubectl_names_itself_and_addresses_the_cluster(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[argparse.Namespace] = []
    plug_in(monkeypatch, "where", lambda arguments: seen.append(arguments))
    assert main_kubectl(["where"]) == 0
    assert main(["where"]) == 0
    assert [arguments.kube for arguments in seen] == [True, False]
    assert main_kubectl(["compile", "--help"]) == 0
    assert "usage: kubectl servepipe compile" in capsys.readouterr().out


def test_the_arguments_of_the_process_are_the_default(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["servepipe", "--version"])
    assert main() == 0
    assert main_kubectl() == 0
    assert capsys.readouterr().out.count(servepipe.__version__) == 2


# Commands of other distributions


class Plugin(EntryPoint):
    """An entry point that is not installed; loading it gives ``register`` or raises it."""

    def load(self) -> Any:
        if isinstance(REGISTER[self.name], Exception):
            raise REGISTER[self.name]
        return REGISTER[self.name]


REGISTER: dict[str, Any] = {}


def plug_in(monkeypatch: pytest.MonkeyPatch, command: str, run: Any) -> None:
    def register(commands: Any) -> None:
        commands.add_parser(command, help="made up").set_defaults(run=run)

    monkeypatch.setitem(REGISTER, "made-up", run if isinstance(run, Exception) else register)
    entry = Plugin("made-up", "nowhere:register", "servepipe.commands")
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: [entry])


def test_a_plug_in_adds_a_command(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    plug_in(monkeypatch, "made-up", lambda arguments: 7)
    assert run("made-up").status == 7
    assert "made-up" in run("--help").out
    assert "Did you mean 'made-up'?" in run("madeup").err


def test_a_plug_in_whose_extra_is_missing(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    plug_in(monkeypatch, "up", ModuleNotFoundError("No module named 'aiohttp'", name="aiohttp"))
    ran = run("up", "pipeline.py")
    assert ran.status == 2
    assert ran.err == "error: this needs the package 'aiohttp'\n  fix:   pip install \"servepipe[local]\"\n"
    assert run("--help").status == 0


@pytest.mark.parametrize(
    ("module", "extra"), [("ray.serve", "runtime"), ("prometheus_client", "operator"), ("unheard_of", "local")]
)
def test_a_command_whose_extra_is_missing(monkeypatch: pytest.MonkeyPatch, run: Run, module: str, extra: str) -> None:
    def command(arguments: argparse.Namespace) -> None:
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    plug_in(monkeypatch, "made-up", command)
    ran = run("made-up")
    assert ran.status == 2
    if extra == "local":
        assert "a bug in servepipe" in ran.err
    else:
        assert f'pip install "servepipe[{extra}]"' in ran.err


@pytest.mark.parametrize("command", ["compile", "validate", "diff", "graph", "init", "export"])
def test_our_own_commands_do_not_load_plug_ins(monkeypatch: pytest.MonkeyPatch, run: Run, command: str) -> None:
    def fail(group: str) -> Any:
        raise AssertionError("plug-ins were looked for")

    monkeypatch.setattr("importlib.metadata.entry_points", fail)
    assert run(command, "--help").status == 0


# Errors


def raising(monkeypatch: pytest.MonkeyPatch, run: Run, error: BaseException) -> Any:
    def command(arguments: argparse.Namespace) -> None:
        raise error

    plug_in(monkeypatch, "made-up", command)
    return run("made-up")


def test_an_error_says_what_where_and_the_fix(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    ran = raising(monkeypatch, run, RunError("it broke", where="here:1", fix="do this\nthen that"))
    assert (ran.status, ran.out) == (2, "")
    assert ran.err == "error: it broke\n  where: here:1\n  fix:   do this\n         then that\n"
    assert raising(monkeypatch, run, RunError("it broke")).err == "error: it broke\n"


def test_an_error_that_nobody_expected_is_no_traceback_unless_asked_for(
    monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    ran = raising(monkeypatch, run, ValueError("what?"))
    assert ran.status == 2
    assert ran.err.startswith("error: ValueError: what?\n")
    assert "SERVEPIPE_TRACEBACK=1" in ran.err
    assert "Traceback" not in ran.err
    monkeypatch.setenv("SERVEPIPE_TRACEBACK", "1")
    assert "Traceback" in raising(monkeypatch, run, ValueError("what?")).err
    assert "Traceback" in raising(monkeypatch, run, RunError("it broke")).err


def test_a_file_that_hides_the_standard_library_is_named(write: Write, diamond: Path) -> None:
    write("json.py", "")
    command = [sys.executable, "-c", "import sys; from servepipe.cli import main; sys.exit(main())", "compile", diamond]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 2
    assert ran.stderr.startswith(("error: AttributeError: module 'json' has", "error: ImportError: cannot import"))
    assert f"  where: {Path('json.py').resolve()}\n  fix:   This file hides a module" in ran.stderr


def test_an_interrupt_is_quiet(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    ran = raising(monkeypatch, run, KeyboardInterrupt())
    assert (ran.status, ran.err) == (130, "")


def test_an_exit_keeps_its_status(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    assert raising(monkeypatch, run, SystemExit(5)).status == 5
    assert raising(monkeypatch, run, SystemExit()).status == 0


def test_a_reader_that_goes_away_is_no_error(diamond: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", "import sys; from servepipe.cli import main; sys.exit(main())", "graph", "diamond.py"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.wait(30) == 2
    assert process.stderr.read() == b""
    process.stderr.close()


@pytest.mark.parametrize(
    ("redirect", "told"),
    [
        (">/dev/full", "error: No space left on device\n  where: standard output\n"),
        (">&-", "error: it is closed\n  where: standard output\n"),
        ("2>&-", ""),
        ("-o gone/x.yaml 2>&-", ""),
    ],
)
def test_output_that_cannot_be_written(diamond: Path, redirect: str, told: str) -> None:
    command = f"{sys.executable} -m servepipe compile diamond.py {redirect}"
    ran = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60)
    assert ran.stderr == told
    assert ran.returncode == (0 if redirect == "2>&-" else 2)
    assert ran.stdout.startswith("apiVersion") == (redirect == "2>&-")


def test_warnings_are_one_line_and_name_the_users_file(capsys: pytest.CaptureFixture[str]) -> None:
    with trouble.warnings_on_stderr():
        import warnings

        warnings.simplefilter("always")
        warnings.warn_explicit("watch out", UserWarning, "pipeline.py", 3)
        warnings.warn_explicit("from us", UserWarning, trouble.__file__, 3)
        stream = io.StringIO()
        warnings.showwarning("elsewhere", UserWarning, "a.py", 1, file=stream)
    assert capsys.readouterr().err == "warning: watch out\n  where: pipeline.py:3\nwarning: from us\n"
    assert stream.getvalue() == "warning: elsewhere\n  where: a.py:1\n"


# The user's own code


def test_what_a_file_raises_is_shown_without_our_frames(run: Run, write: Write) -> None:
    write("helpers.py", "def weights():\n    raise RuntimeError('no weights')\n")
    write("pipeline.py", "import helpers\nhelpers.weights()\n")
    ran = run("compile", "pipeline.py")
    assert ran.status == 2
    here = Path.cwd()
    without_markers = re.sub(r"^ +[~^]+\n", "", ran.err, flags=re.M)  # newer Pythons underline what failed
    assert without_markers == (
        "Traceback (most recent call last):\n"
        f'  File "{here}/pipeline.py", line 2, in <module>\n'
        "    helpers.weights()\n"
        f'  File "{here}/helpers.py", line 2, in weights\n'
        "    raise RuntimeError('no weights')\n"
        "RuntimeError: no weights\n"
        "error: importing 'pipeline' raised RuntimeError: no weights\n"
        f"  where: {here}/helpers.py:2\n"
        "  fix:   Correct the file, or install what it needs.\n"
    )


def test_a_syntax_error_shows_the_line(run: Run, write: Write) -> None:
    write("pipeline.py", "x = [1,\ny = 2\n")
    ran = run("compile", "pipeline.py")
    assert ran.status == 2
    assert "SyntaxError: " in ran.err
    assert "servepipe/authoring" not in ran.err
    assert f"  where: {Path.cwd()}/pipeline.py:" in ran.err


def test_a_file_that_exits_is_an_error(run: Run, write: Write) -> None:
    write("pipeline.py", "import sys\nsys.exit(0)\n")
    ran = run("compile", "pipeline.py")
    assert ran.status == 2
    assert ran.err.startswith("error: importing 'pipeline' raised SystemExit: 0\n")


def test_an_error_of_ours_in_a_file_is_an_error_like_any_other(run: Run, write: Write) -> None:
    write("pipeline.py", "from servepipe import remote\nremote(1)\n")
    ran = run("compile", "pipeline.py")
    assert ran.status == 2
    assert ran.err.startswith("error: remote() takes a class or a function")
    assert "pipeline.py:2\n" in ran.err
    assert "Traceback" not in ran.err


def test_commands_are_complete() -> None:
    assert set(cli._COMMANDS) == {"compile", "validate", "diff", "graph", "init", "export"}
