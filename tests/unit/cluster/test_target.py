"""Which pipelines a command is about, and what it says where that is not clear."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from servepipe.errors import MissingExtraError, RunError, ServePipeError
from servepipe_operator import commands
from servepipe_operator.commands import register
from servepipe_operator.local import commands as local

BOTH = {
    "status": ["status"],
    "scale": ["scale", "m1=2"],
    "apply": ["apply", "pipeline.yaml"],
    "logs": ["logs", "m1"],
    "call": ["call", "1"],
}
CLUSTER = {
    "suspend": ["suspend", "shop"],
    "pause": ["pause", "shop"],
    "resume": ["resume", "shop"],
    "delete": ["delete", "shop"],
}


@pytest.fixture(autouse=True)
def nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))


Servepipe = Callable[..., Any]


@pytest.fixture
def servepipe(monkeypatch: pytest.MonkeyPatch) -> Servepipe:
    """Runs a command; what would reach a cluster returns its name and arguments instead."""

    def servepipe(*words: str, kube: bool = False) -> Any:
        for name in {*BOTH, *CLUSTER}:
            home = importlib.import_module(commands._HOMES[name])
            monkeypatch.setattr(home, name, lambda arguments, name=name: (name, arguments))
        parser = argparse.ArgumentParser(prog="servepipe")
        parser.set_defaults(kube=kube)  # as the command's own parser does
        register(parser.add_subparsers(required=True))
        arguments = parser.parse_args(words)
        return arguments.run(arguments)

    return servepipe


@pytest.mark.parametrize("flags", [["--kube"], ["--context", "prod"], ["-n", "shop"], ["--kubeconfig", "f"]], ids=str)
@pytest.mark.parametrize("command", BOTH)
def test_any_of_the_options_turns_a_command_to_the_cluster(
    servepipe: Servepipe, command: str, flags: list[str]
) -> None:
    name, arguments = servepipe(*BOTH[command], *flags)
    assert name == command
    assert arguments.kube == ("--kube" in flags)


@pytest.mark.parametrize("command", [*BOTH, *CLUSTER])
def test_a_plug_in_of_kubectl_needs_no_option(servepipe: Servepipe, command: str) -> None:
    assert servepipe(*(BOTH | CLUSTER)[command], kube=True)[0] == command


@pytest.mark.parametrize("command", CLUSTER)
def test_what_exists_only_for_a_cluster_needs_none_either(servepipe: Servepipe, command: str) -> None:
    name, arguments = servepipe(*CLUSTER[command])
    assert (name, arguments.pipeline) == (command, "shop")


@pytest.mark.parametrize("command", BOTH)
def test_without_any_it_is_this_machine_and_the_error_names_both_ways(servepipe: Servepipe, command: str) -> None:
    with pytest.raises(RunError, match="Nothing runs on this machine") as told:
        servepipe(*BOTH[command])
    assert "servepipe up FILE" in told.value.fix
    assert "For a pipeline in a cluster add --kube, --context or -n." in told.value.fix


@pytest.mark.parametrize("command", BOTH)
def test_who_has_only_what_a_cluster_takes_is_told_how_to_name_it(
    servepipe: Servepipe, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """Who installed the extra `operator` and forgot `-n`."""

    def without(_: argparse.Namespace) -> int:
        raise ModuleNotFoundError("No module named 'psutil'", name="psutil")

    monkeypatch.setattr(local, command, without)
    with pytest.raises(MissingExtraError) as told:
        servepipe(*BOTH[command])
    assert 'pip install "servepipe[local]"' in told.value.fix
    assert "For a pipeline in a cluster add --kube, --context or -n." in told.value.fix


@pytest.mark.parametrize(("command", "instead"), [("up f.py", "apply"), ("down", "delete")])
def test_what_exists_only_for_this_machine(servepipe: Servepipe, command: str, instead: str) -> None:
    with pytest.raises(ServePipeError, match="is about this machine") as told:
        servepipe(*command.split(), kube=True)
    assert f"kubectl servepipe {instead}" in told.value.fix


@pytest.mark.parametrize(
    "words",
    [
        ["apply", "f", "--dry-run"],
        ["apply", "f", "--take-ownership"],
        ["apply", "f", "--no-wait"],
        ["apply", "f", "--timeout", "5m"],
        ["logs", "m1", "--tail", "5"],
    ],
    ids=str,
)
def test_options_that_mean_nothing_on_this_machine(servepipe: Servepipe, words: list[str]) -> None:
    option = next(word for word in words if word.startswith("--"))
    with pytest.raises(ServePipeError, match=f"{option}: for a pipeline in a cluster only"):
        servepipe(*words)
    assert servepipe(*words, "--kube")[0] == words[0]


def test_two_ways_to_say_the_same(servepipe: Servepipe) -> None:
    assert servepipe("apply", "-f", "a.yaml", "--kube")[1].file == "a.yaml"
    assert servepipe("apply", "a.yaml", "-f", "a.yaml", "--kube")[1].file == "a.yaml"
    assert servepipe("status", "shop", "--kube")[1].pipeline == "shop"
    assert servepipe("status", "-p", "shop", "--kube")[1].pipeline == "shop"
    for words in (["apply", "a.yaml", "-f", "b.yaml"], ["status", "one", "-p", "two"]):
        with pytest.raises(ServePipeError, match="are two"):
            servepipe(*words, "--kube")
    with pytest.raises(ServePipeError, match="no file to apply"):
        servepipe("apply", "--kube")


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("15m", 900), ("1h", 3600)])
def test_times(servepipe: Servepipe, text: str, seconds: float) -> None:
    assert servepipe("apply", "f", "--kube", "--timeout", text)[1].timeout == seconds
    assert servepipe("apply", "f", "--kube")[1].timeout == 900


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5", "5d", "soon"])
def test_no_times(servepipe: Servepipe, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        servepipe("apply", "f", "--kube", f"--timeout={text}")
    assert "is not a time, like 90s, 15m or 1h" in capsys.readouterr().err
