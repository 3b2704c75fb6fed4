"""`make demo`: the whole job on this machine, with an upgrade of two models while requests run.

Compiles the pipeline, starts it on a Ray of its own, sends every document and compares the answers with
`expected.json`. Then, under load, the language detector gets one more language (its arguments change) and the sentiment
model another threshold (its code changes). Ends with 0 only if no request failed and nothing but these two models was
restarted.
"""

from __future__ import annotations

import importlib.util
import platform
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from load import Client, Load, NoAnswerError, ask
from local_run import START_TIMEOUT_S, LocalRun, Node, RunFailedError, alive, settled
from samples import differences, documents, expected

HERE = Path(__file__).parent
PIPELINE = "document-triage"
UPGRADE_TIMEOUT_S = 120.0
LEAST_REQUESTS = 200
"""Fewer requests than this inside an upgrade would prove little."""

MODELS = ("file-type", "text-detection", "orientation", "recognition", "language-detector", "sentiment-analysis")

PACKAGES = {
    "magika": "magika",
    "rapidocr_onnxruntime": "rapidocr-onnxruntime",
    "lingua": "lingua-language-detector",
    "vaderSentiment": "vaderSentiment",
    "skimage": "scikit-image",
    "ray": "servepipe[local]",
}


@dataclass(frozen=True)
class Change:
    """An edit of the project, and the node that it must move."""

    title: str
    node: str
    upgrade: str
    file: str
    old: str
    new: str

    def make(self, project: Path) -> None:
        path = project / self.file
        source = path.read_text(encoding="utf-8")
        if source.count(self.old) != 1:
            raise RunFailedError(f"{self.file} does not contain {self.old!r} exactly once")
        path.write_text(source.replace(self.old, self.new), encoding="utf-8")


CHANGES = (
    Change(
        title="the language detector learns Dutch (arguments)",
        node="language-detector",
        upgrade="language",
        file="pipeline.py",
        old='"es", "it"]',
        new='"es", "it", "nl"]',
    ),
    Change(
        title="the sentiment model wants to be surer (code)",
        node="sentiment-analysis",
        upgrade="sentiment",
        file="sentiment.py",
        old="CLEAR_FROM = 0.05",
        new="CLEAR_FROM = 0.5",
    ),
)


def main() -> int:
    """The demo; returns the exit code: 0 all is well, 1 something is not, 2 it cannot run here."""
    missing = what_is_missing()
    if missing:
        print(f"error: {missing}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the pipeline is stopped on the way out
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="servepipe-demo-") as folder:
        project = Path(folder) / "document_triage"
        shutil.copytree(HERE, project, ignore=shutil.ignore_patterns("__pycache__"))
        try:
            problems = demo(project, Path(folder) / "state")
        except RunFailedError as error:
            problems = [str(error)]
        except KeyboardInterrupt:
            print("\ninterrupted; the pipeline was stopped", file=sys.stderr)
            return 130
    took = f"{time.monotonic() - started:.0f} s"
    if problems:
        print(f"\nFAILED after {took}:", *problems, sep="\n- ", file=sys.stderr)
        return 1
    print(f"\nAll is well after {took}: every answer as expected, no request failed, only what changed was restarted.")
    return 0


def what_is_missing() -> str:
    """Why the demo cannot run here, with what to do about it; "" when it can."""
    lacking = [package for module, package in PACKAGES.items() if importlib.util.find_spec(module) is None]
    if not lacking:
        return ""
    if "rapidocr-onnxruntime" in lacking and sys.version_info >= (3, 13):
        return (
            f"rapidocr-onnxruntime has no release for Python {platform.python_version()}, only for 3.11 and 3.12\n"
            "  Make the virtual environment with one of them: make clean && make demo PYTHON=python3.12"
        )
    return f"the demo needs {', '.join(lacking)}\n  pip install {' '.join(repr(package) for package in lacking)}"


def demo(project: Path, state: Path) -> list[str]:
    """Everything, on a copy of the project that it may change; what was not as it should be, line by line.

    Raises:
        RunFailedError: It could not go on.
    """
    say = Progress()
    inputs = documents()
    problems = []
    with LocalRun(project, state, PIPELINE, say) as run:
        say("compiling pipeline.py")
        run.compile()
        say("starting it: servepipe up pipeline.yaml")
        run.start()
        nodes = run.wait("ready pipeline", settled, START_TIMEOUT_S)
        url = run.status()["url"]
        say(f"ready at {url}")
        problems += without_process(nodes) + shared_processes(nodes)
        problems += check_all(url, inputs, upgraded=())
        say(f"sent each of {len(inputs)} documents and compared the answers with expected.json")
        done: list[str] = []
        with Load(url, inputs, expected(), seldom=["page.png"]) as load:
            for change in CHANGES:
                say(f"under load: {change.title}")
                nodes, found = upgrade(run, load, change, nodes, done, project)
                problems += found
                done.append(change.upgrade)
        problems += [f"{one.document}: {one.problem}" for one in load.sent() if one.problem][:10]
        problems += check_all(url, inputs, upgraded=done)
        say(f"sent each document again; {len(load.sent())} requests under load, {load.reconnected} reconnections")
    left = [
        f"process {pid} of {name} still runs" for name in nodes for pid in nodes[name].replicas.values() if alive(pid)
    ]
    say("stopped")
    return problems + left


def upgrade(
    run: LocalRun, load: Load, change: Change, before: dict[str, Node], done: Sequence[str], project: Path
) -> tuple[dict[str, Node], list[str]]:
    """Make the change while the load goes on, print what moved; the nodes afterwards, and what is wrong with them."""
    old_revision = before[change.node].revision

    def moved(status: dict[str, object]) -> dict[str, Node] | None:
        nodes = settled(status)
        return nodes if nodes and nodes[change.node].revision != old_revision else None

    change.make(project)
    run.compile()
    load.allow(expected(done), expected([*done, change.upgrade]))
    start = time.monotonic()
    run.apply()
    after = run.wait(f"new revision of {change.node}", moved, UPGRADE_TIMEOUT_S)
    end = time.monotonic()
    load.allow(expected([*done, change.upgrade]))

    sent = load.sent(start, end)
    failed = [one for one in sent if one.problem]
    print_table(before, after)
    print(f"  requests sent meanwhile: {len(sent)}, failed: {len(failed)}, took {end - start:.1f} s", flush=True)
    problems = what_moved_wrongly(change.node, before, after) + shared_processes(after)
    if len(sent) < LEAST_REQUESTS:
        problems.append(f"only {len(sent)} requests during the upgrade of {change.node}, not {LEAST_REQUESTS}")
    return after, problems


def check_all(url: str, inputs: dict[str, bytes], upgraded: Sequence[str]) -> list[str]:
    """Send every document once; what is wrong with the answers."""
    client = Client(url)
    problems = []
    for name, wanted in expected(upgraded).items():
        try:
            problems += [f"{name}: {difference}" for difference in differences(wanted, ask(client, inputs[name]))]
        except NoAnswerError as error:
            problems.append(f"{name}: {error}")
    client.close()
    return problems


def without_process(nodes: dict[str, Node]) -> list[str]:
    """The models, and the ingress, that have no process."""
    return [f"{name} has no process" for name in (*MODELS, "ingress") if not nodes[name].replicas]


def shared_processes(nodes: dict[str, Node]) -> list[str]:
    """The processes in which more than one node, or a node and the ingress, run."""
    homes: dict[int, list[str]] = {}
    for name, node in nodes.items():
        for pid in node.replicas.values():
            homes.setdefault(pid, []).append(name)
    return [f"{' and '.join(names)} share process {pid}" for pid, names in homes.items() if len(names) > 1]


def what_moved_wrongly(changed: str, before: dict[str, Node], after: dict[str, Node]) -> list[str]:
    """Where an upgrade of one node did not replace it, or touched another."""
    others = sorted((before.keys() | after.keys()) - {changed})
    problems = [
        f"{name} moved during the upgrade of {changed}: {before.get(name)} -> {after.get(name)}"
        for name in others
        if before.get(name) != after.get(name)
    ]
    if before[changed].replicas.keys() & after[changed].replicas.keys():
        problems.append(f"{changed} was not replaced")
    return problems


def print_table(before: dict[str, Node], after: dict[str, Node]) -> None:
    """Per node the revision and the replicas (with their process ids) before and after."""
    rows = [("node", "revision", "replica (pid)", "")]
    for name in after:
        old, new = before[name], after[name]
        revision = old.revision if old.revision == new.revision else f"{old.revision} -> {new.revision}"
        replicas = replicas_of(old) if old.replicas == new.replicas else f"{replicas_of(old)} -> {replicas_of(new)}"
        rows.append((name, revision, replicas, "" if old == new else "upgraded"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def replicas_of(node: Node) -> str:
    return ", ".join(f"{replica} ({pid})" for replica, pid in sorted(node.replicas.items())) or "in the ingress"


class Progress:
    """One line for each step, with the seconds since the start."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def __call__(self, what: str) -> None:
        print(f"[{time.monotonic() - self._start:5.1f} s] {what}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
