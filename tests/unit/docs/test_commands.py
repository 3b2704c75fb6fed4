"""What the pages tell people to type exists: commands with their options, make's targets, chart values, files, YAML."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from doc_blocks import Block, blocks
from docs_pages import PAGES, ROOT, fences, inline_code, name, simple_commands

from servepipe import api
from servepipe.api.crd import crd
from servepipe.cli import _parse
from servepipe.errors import ServePipeError
from servepipe_operator.controller.settings import _parser as operator_parser

BLOCKS = [block for page in PAGES for block in blocks(page)]
TARGETS = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M))
VALUES = json.loads((ROOT / "charts" / "servepipe" / "values.schema.json").read_text(encoding="utf-8"))
#: Folders of the project, by which a path on a page is told from one of the reader's.
FOLDERS = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")} - {"build", "dist"}
#: Programs that a reader is told to have, or that every system has.
PROGRAMS = {"curl", "docker", "git", "grep", "helm", "jq", "kind", "kubectl", "make", "pip", "python", "python3", "sed"}
PROGRAMS |= {"cat", "cd", "echo", "export", "hostname", "servepipe", "servepipe-operator", "source", "test"}


def commands() -> Iterator[tuple[str, list[str]]]:
    """Every command of every block, and where it stands."""
    for block in BLOCKS:
        for command in block.commands:
            for words in simple_commands(command.text):
                yield f"{block.page.relative_to(ROOT)}:{command.line}", words


def ours() -> Iterator[tuple[str, list[str], bool]]:
    """The arguments of each `servepipe` and `kubectl servepipe`, and whether it is the latter."""
    for where, words in commands():
        if words[0] == "servepipe" and len(words) > 1:
            yield where, words[1:], False
        elif words[:2] == ["kubectl", "servepipe"]:
            yield where, words[2:], True


def test_there_is_something_to_check() -> None:
    assert len(list(ours())) > 40
    assert len(list(commands())) > 100


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.place.removeprefix(f"{ROOT}/"))
def test_blocks_are_bash(block: Block) -> None:
    for command in block.commands:
        checked = subprocess.run(["bash", "-n"], input=command.text, capture_output=True, text=True, timeout=30)
        assert checked.returncode == 0, f"{block.place}: {checked.stderr}"


def test_programs_are_known() -> None:
    assert {words[0] for _, words in commands() if "=" not in words[0]} <= PROGRAMS


@pytest.mark.parametrize(("where", "arguments", "kube"), list(ours()), ids=lambda value: str(value)[:60])
def test_our_commands_parse(where: str, arguments: list[str], kube: bool) -> None:
    try:
        _parse("servepipe", arguments, kube)
    except ServePipeError as error:
        pytest.fail(f"{where}: servepipe {shlex.join(arguments)}: {error}")
    except SystemExit as end:  # --help
        assert end.code == 0


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_our_commands_in_the_text_exist(page: Path) -> None:
    for code in inline_code(page):
        words = re.sub(r"[…\[\]]", "", code).replace("(s)", "").split()
        if words[:2] == ["kubectl", "servepipe"]:
            words = words[1:]
        if words[:1] != ["servepipe"] or len(words) < 2 or not re.fullmatch(r"[a-z]+", words[1]):
            continue
        options = {word.partition("=")[0] for word in words if word.startswith("--")}
        try:
            known = _options_of(words[1:3] if words[1] == "export" else words[1:2])
        except ServePipeError as error:
            pytest.fail(f"{name(page)}: `{code}`: {error}")
        assert options <= known, f"{name(page)}: `{code}`"


def _options_of(command: list[str]) -> set[str]:
    """What its help names."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), pytest.raises(SystemExit):
        _parse("servepipe", [*command, "--help"], False)
    return set(re.findall(r"--[a-z][a-z-]*", text.getvalue()))


def test_the_operators_flags_exist() -> None:
    found = [(where, words[1:]) for where, words in commands() if words[0] == "servepipe-operator"]
    assert found
    for where, arguments in found:
        options = {word.partition("=")[0] for word in arguments if word.startswith("--")}
        assert options <= set(operator_parser()._option_string_actions), where


def test_targets_of_make_exist() -> None:
    named = {(where, word) for where, words in commands() if words[0] == "make" for word in words[1:2]}
    in_text = re.compile(r"^make ([a-z0-9-]+)$")
    for page in PAGES:
        named |= {(name(page), found) for code in inline_code(page) for found in in_text.findall(code)}
    assert named
    assert not {(where, target) for where, target in named if target not in TARGETS}


# --- The chart --------------------------------------------------------------------------------------------------------


def _value(path: str) -> bool:
    """Whether the chart has this value; what is in a free-form one is the reader's."""
    schema: Mapping[str, Any] = VALUES
    for part in path.split("."):
        if part not in schema.get("properties", {}):
            return schema.get("additionalProperties") not in (False, None)
        schema = schema["properties"][part]
    return True


def test_values_that_are_set_exist() -> None:
    said: list[tuple[str, str]] = []
    for where, words in commands():
        said += [(where, words[i + 1]) for i, word in enumerate(words[:-1]) if word.startswith("--set")]
    for page in PAGES:
        for code in inline_code(page):
            said += [(name(page), found) for found in re.findall(r"--set(?:-\w+)? ([^\s`]+=)", code)]
            # As in "`crds.enabled=false`", and the values that a page names alone.
            said += [(name(page), found) for found in re.findall(r"^([a-z]\w*\.\w+)=\S+$", code)]
            said += [(name(page), found) for found in re.findall(r"^(settings\.\w+)$", code)]
    assert len(said) > 10
    wrong = [(where, text) for where, text in said if not _value(text.partition("=")[0])]
    # Fields of the resource are written the same way.
    assert not [(where, text) for where, text in wrong if text.partition(".")[0] not in ("ingress", "metadata")]


# --- Files and YAML ---------------------------------------------------------------------------------------------------


def test_files_of_the_project_that_are_named_exist() -> None:
    words = [(where, word) for where, found in commands() for word in found]
    words += [(name(page), word) for page in PAGES for code in inline_code(page) for word in code.split()]
    for where, word in words:
        path = word.strip("\"',;:()").partition("=")[2] or word.strip("\"',;:()")
        path = path.partition("::")[0]
        if path.partition("/")[0] in FOLDERS and "/" in path and not re.search(r"[*${<…]|^operator/$", path):
            base = (ROOT / where.partition(":")[0]).parent
            assert (ROOT / path).exists() or (base / path).exists(), f"{where}: {path} does not exist"


def documents() -> list[tuple[str, Any]]:
    return [
        (f"{name(page)}-{number}", one)
        for page in PAGES
        for number, body in enumerate(fences(page, "yaml"), 1)
        for one in yaml.safe_load_all(body)
    ]


@pytest.mark.parametrize(("where", "document"), documents(), ids=lambda value: value if isinstance(value, str) else "")
def test_pipelines_are_valid(where: str, document: Any) -> None:
    if document.get("kind") == "ServePipeline":
        assert api.problems(api.validate(document)) == []
    elif "spec" in document and "kind" not in document and "gitops" not in where:
        schema = crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
        unknown = list(_unknown(document["spec"], schema, "spec"))
        assert not unknown, f"{where}: no fields of a pipeline: {unknown}"


def _unknown(value: Any, schema: Mapping[str, Any], path: str) -> Iterator[str]:
    if isinstance(value, dict) and "properties" in schema:
        for key, item in value.items():
            if key in schema["properties"]:
                yield from _unknown(item, schema["properties"][key], f"{path}.{key}")
            else:
                yield f"{path}.{key}"
    elif isinstance(value, dict) and "additionalProperties" in schema:
        for key, item in value.items():
            yield from _unknown(item, schema["additionalProperties"], f"{path}.{key}")
    elif isinstance(value, list) and "items" in schema:
        for item in value:
            yield from _unknown(item, schema["items"], f"{path}[]")


def test_the_first_pipeline_is_what_compile_writes(tmp_path: Path) -> None:
    page = ROOT / "docs" / "first-pipeline.md"
    [overlay] = [
        command.text for block in blocks(page) for command in block.commands if command.text.startswith("cat > small")
    ]
    small = tmp_path / "small.yaml"
    small.write_text("\n".join(overlay.splitlines()[1:-1]), encoding="utf-8")
    command = [sys.executable, "-m", "servepipe", "compile", "examples/diamond/diamond.py", "-f", str(small)]
    compiled = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert compiled.stdout == fences(page, "yaml")[0]
