"""Commands are found on a page, run in one shell, and what they print is compared with what the page shows."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from doc_blocks import WalkError, blocks
from walk import main, missing, walk


def page(folder: Path, text: str) -> Path:
    path = folder / "page.md"
    path.write_text(text, encoding="utf-8")
    return path


def test_commands_with_what_they_show(tmp_path: Path) -> None:
    text = "# T\n```console\n$ one \\\n    --two\nshown\n\n$ cat <<EOF\n$ no prompt\nEOF\n$ three\n```\n"
    text += "```yaml\na: 1\n```\n"
    [block] = blocks(page(tmp_path, text))
    first, second, third = block.commands
    assert (first.text, first.line, first.shows) == ("one \\\n    --two", 3, ("shown",))
    assert (second.text, second.shows) == ("cat <<EOF\n$ no prompt\nEOF", ())
    assert (third.text, third.line) == ("three", 10)


def test_a_script_is_one_command_and_may_stand_in_a_list(tmp_path: Path) -> None:
    [block] = blocks(page(tmp_path, "- item\n  ```sh\n  cd a\n  ls\n  ```\n"))
    assert [command.text for command in block.commands] == ["cd a\nls"]


def test_markers(tmp_path: Path) -> None:
    text = "<!-- walk: step cluster; needs kind, docker; timeout 600 -->\n```sh\nkind\n```\n```sh\nls\n```\n"
    first, second = blocks(page(tmp_path, text))
    assert (first.step, first.needs, first.timeout_s) == ("cluster", {"kind", "docker"}, 600)
    assert (second.step, second.needs, second.skip) == ("", frozenset(), "")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("<!-- walk: skp x -->\n```sh\nls\n```\n", "skp x"),
        ("<!-- walk: skip -->\n```sh\nls\n```\n", "skip"),
        ("<!-- walk: timeout long -->\n```sh\nls\n```\n", "long"),
        ("<!-- walk: skip it -->\nWords.\n\n```sh\nls\n```\n", "belongs to no block"),
        ("<!-- walk: skip it -->\n", "belongs to no block"),
        ("```console\nls\n```\n", "belongs to no command"),
        ("```console\n```\n", "without a line"),
    ],
)
def test_what_cannot_be_understood_is_told(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(WalkError, match=told):
        blocks(page(tmp_path, text))


@pytest.mark.parametrize(
    ("shown", "output", "lacks"),
    [
        ("m1  6f3a91c2  3/3", "head\nm1   0b1c2d3e 3/3   100%\n", False),
        ("m1  6f3a91c2  3/3", "m1 0b1c2d3e 2/3", True),
        ("diamond True 4s", "diamond   True   12m", False),
        ("12:00:01 Ready", "23:59:59 Ready", False),
        ("pod/diamond-… Running", "pod/diamond-62a7a-head-b24rg 2/2 Running", False),
        ("pod/diamond-… Running", "pod/diamond-62a7a-head-b24rg 2/2 Pending", True),
        ("second\nfirst", "first\nsecond", True),
        ("", "anything", False),
    ],
)
def test_output_is_compared_loosely(shown: str, output: str, lacks: bool) -> None:
    assert (missing(shown.splitlines(), output) is not None) == lacks


def test_the_blocks_of_a_page_share_a_shell(tmp_path: Path) -> None:
    text = "```console\n$ mkdir a && cd a\n$ export X=7\n```\n```sh\nsleep 600 &\necho $! > pid\n```\n"
    text += "```console\n$ echo $X in $(basename $PWD)\n7 in a\n```\n"
    assert walk([page(tmp_path, text)], cwd=tmp_path, say=lambda _: None) == 4
    pid = int((tmp_path / "a" / "pid").read_text())
    until = time.monotonic() + 20
    while alive(pid):
        assert time.monotonic() < until, "the job in the background lives on"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    """Whether there is such a process that was not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "```console\n$ echo out; false\n```\n",
            "page.md:2: [$] echo out; false\nended with status 1. It printed:\nout",
        ),
        ("```console\n$ echo out\nin\n```\n", "did not print this line of the page: in"),
        ("<!-- walk: timeout 0.2 -->\n```console\n$ sleep 60\n```\n", "did not end within 0.2 s"),
        ("```console\n$ exit 3\n```\n", "ended with status 3"),
        ("```sh\nfalse\necho on\n```\n", "ended with status 1"),
    ],
)
def test_what_a_command_does_not_do_is_told(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(WalkError, match=told):
        walk([page(tmp_path, text)], cwd=tmp_path, say=lambda _: None)


def test_steps_are_skipped_or_done_in_another_way_and_that_is_said(tmp_path: Path) -> None:
    text = "<!-- walk: step cluster; needs kind -->\n```sh\nfalse\n```\n"
    text += "<!-- walk: skip a terminal -->\n```sh\nfalse\n```\n"
    said: list[str] = []
    assert walk([page(tmp_path, text)], cwd=tmp_path, say=said.append) == 0
    assert [line.partition(": ")[2] for line in said] == ["skipped: it needs kind", "skipped: a terminal"]
    assert walk([page(tmp_path, text)], instead={"cluster": "touch made"}, cwd=tmp_path, say=said.append) == 1
    assert (tmp_path / "made").exists()
    assert "step cluster is done in another way here" in said[2]
    assert walk([page(tmp_path, text)], instead={"cluster": ""}, cwd=tmp_path, say=said.append) == 0


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = page(tmp_path, "<!-- walk: needs kind -->\n```sh\nfalse\n```\n```sh\ntrue\n```\n")
    assert main([str(path), "--list"]) == 0
    assert "$ false    [needs kind]" in capsys.readouterr().out
    assert main([str(path)]) == 0
    assert "1 commands did" in capsys.readouterr().out
    assert main([str(path), "--have", "kind"]) == 1
    script = tmp_path / "script.sh"
    script.write_text("true")
    assert main([str(path), "--instead", f"cluster={script}"]) == 0
