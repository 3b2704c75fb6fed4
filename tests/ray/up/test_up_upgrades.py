"""Upgrades of one node, or of the ingress, under load: nobody notices, nothing else moves, and what is bad never gets
a request.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.ray

LEFT = """
import os, time
from servepipe import remote

VERSION = "one"
WAITS_FOR = ""

@remote
class Left:
    def __init__(self, factor):
        self.factor = factor
        while WAITS_FOR and not os.path.exists(WAITS_FOR):
            time.sleep(0.05)

    async def forward(self, x): return {"value": self.factor * x, "version": VERSION, "pid": os.getpid()}
"""
RIGHT = '''
import os
from servepipe import remote

@remote
class Right:
    def __init__(self, offset): self.offset = offset
    def forward(self, x, adapted): return {"value": x + self.offset, "adapted": adapted, "pid": os.getpid()}

@remote
class Held:
    """Only the holder calls it: no step names it."""
    def __init__(self, word): self.word = word
    def forward(self, x): return f"{self.word} {x}"

@remote
class Holder:
    def __init__(self, held): self.held = held
    async def forward(self, x): return await self.held.forward.remote(x)
'''
ADAPT = """
VERSION = "one"

async def inputs(request):
    return {"x": await request.json(), "adapted": VERSION}

def other(request):
    return {"x": 5, "adapted": "other"}
"""
GLUE = """
import os, time
from servepipe import remote

@remote(placement="Inline")
class Scale:
    def __init__(self, by, file):
        self.by, self.file = by, file
        self.note("built")
        while not os.path.exists(file):
            time.sleep(0.05)

    def note(self, what):
        with open(self.file + ".notes", "a") as notes:
            notes.write(f"{what} in {os.getpid()}\\n")

    async def forward(self, x): return {"value": self.by * x, "pid": os.getpid()}

    def close(self): self.note("closed")
"""
TELL = """
import os
from servepipe import remote

VERSION = "one"

@remote(placement="Inline", drain_seconds=5)
def tell(x, word): return {"word": word, "version": VERSION, "pid": os.getpid()}
"""
PIPELINE = """
import adapt
from glue import Scale
from left import Left
from right import Held, Holder, Right
from tell import tell
from servepipe import ServeInputNode, build

with ServeInputNode(preprocessor=adapt.inputs) as dag_input:
    left = Left.bind(2)
    right = Right.bind(1)
    held = Held.bind("hello")
    holder = Holder.bind(held)
    scale = Scale.bind(2, "FOLDER/scale-2")
    x = dag_input["x"]
    dag = [
        left.forward.bind(x),
        right.forward.bind(x, dag_input["adapted"]),
        holder.forward.bind(x),
        scale.forward.bind(x),
        tell.bind(x, "first"),
    ]

app = build(dag, name="four")
"""
FILES = {
    "left.py": LEFT,
    "right.py": RIGHT,
    "glue.py": GLUE,
    "tell.py": TELL,
    "adapt.py": ADAPT,
    "pipeline.py": PIPELINE,
}
NODES = ["held", "holder", "ingress", "left", "right"]
"""What has replicas. Scale and tell are nodes too, in the ingress's process."""


class Project:
    """The files of the pipeline, to be changed one string at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.file = folder / "pipeline.py"
        for name, text in FILES.items():
            (folder / name).write_text(text.replace("FOLDER", str(folder.parent)), encoding="utf-8")
        self.scale_file(2).touch()

    def change(self, name: str, old: str, new: str) -> None:
        text = (self.folder / name).read_text(encoding="utf-8")
        assert old in text
        (self.folder / name).write_text(text.replace(old, new), encoding="utf-8")

    def scale_file(self, by: int) -> Path:
        """Scale with this argument is not built before this file is there; what becomes of it is in ``notes_of``."""
        return self.folder.parent / f"scale-{by}"

    def notes_of_scale(self, by: int) -> list[str]:
        notes = self.folder.parent / f"scale-{by}.notes"
        return notes.read_text(encoding="utf-8").splitlines() if notes.exists() else []

    def let_left_wait(self, version: str) -> Path:
        """Left as it is now does not start before the file is there whose path this gives."""
        file = self.folder.parent / f"{version} may start"
        text = (self.folder / "left.py").read_text(encoding="utf-8")
        text = re.sub("^WAITS_FOR = .*$", f"WAITS_FOR = {str(file)!r}", text, flags=re.MULTILINE)
        (self.folder / "left.py").write_text(text, encoding="utf-8")
        return file


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project(tmp_path_factory.mktemp("project") / "four")


@pytest.fixture(scope="module")
def up(new_up: Callable[[str], Any], project: Project) -> Any:
    up = new_up("four")
    up.start(project.file)
    up.wait_settled("the pipeline to be ready")
    return up


def load(tools: Any, up: Any, check: Callable[[Any], bool] = lambda _: True) -> Any:
    return tools.Load(up.snapshot()["url"], 5, clients=20, check=check)


def unchanged(tools: Any, before: Any, after: Any, *moved: str) -> None:
    """Every node but ``moved`` has exactly the replicas that it had."""
    was, now = tools.replicas(before), tools.replicas(after)
    assert sorted(was) == sorted(now) == NODES
    for node in NODES:
        if node in moved:
            assert now[node].keys().isdisjoint(was[node]), node
        else:
            assert now[node] == was[node], node


def only_changed(tools: Any, before: Any, after: Any) -> set[str]:
    """The nodes whose revisions differ."""
    was, now = tools.revisions(before), tools.revisions(after)
    assert was.keys() == now.keys()
    return {node for node in was if was[node] != now[node]}


def told_by_the_ingress(tools: Any, snapshot: Any, node: str) -> Any:
    """The status of a node as it should be, given that the ingress calls it at one revision and where it does."""
    told = tools.get(f"{snapshot['url']}-/graph")["nodes"][node]
    (route,) = told["routes"]
    return {"revision": route["revision"], "placement": told["placement"], "state": "Running"}


def test_one_of_four_nodes_is_upgraded_under_20_clients(up: Any, tools: Any, project: Project) -> None:
    before = up.wait_settled("a settled pipeline")
    with load(tools, up, lambda a: a[0]["value"] in (10, 15) and a[1]["value"] == 6 and a[2] == "hello 5") as clients:
        clients.wait_for_more(200)
        project.change("pipeline.py", "Left.bind(2)", "Left.bind(3)")
        up.run("apply", str(project.file))
        up.wait("left to be replaced", lambda s: tools.revisions(s)["left"] != tools.revisions(before)["left"])
        after = up.wait_settled("the upgrade to be finished")
        clients.wait_for_more(200)
    assert clients.failures == []
    assert {answer[0]["value"] for answer in clients.answers} == {10, 15}
    assert clients.answers[-1][0]["value"] == 15
    unchanged(tools, before, after, "left")


def test_a_node_that_only_a_holder_calls_is_upgraded_under_load(up: Any, tools: Any, project: Project) -> None:
    before = up.wait_settled("a settled pipeline")
    with load(tools, up, lambda a: a[2] in ("hello 5", "bye 5")) as clients:
        clients.wait_for_more(100)
        project.change("pipeline.py", 'Held.bind("hello")', 'Held.bind("bye")')
        up.run("apply", str(project.file))
        up.wait("held to be replaced", lambda s: tools.revisions(s)["held"] != tools.revisions(before)["held"])
        after = up.wait_settled("the upgrade to be finished")
        clients.wait_for_more(100)
    assert clients.failures == []
    assert {answer[2] for answer in clients.answers} == {"hello 5", "bye 5"}
    unchanged(tools, before, after, "held")


def test_new_arguments_of_an_inline_node_bring_a_second_instance_into_the_same_process(
    up: Any, tools: Any, project: Project
) -> None:
    """The old one answers while the new one is being built, and is closed when it is not needed any more."""
    before = up.wait_settled("a settled pipeline")
    (pid,) = tools.replicas(before)["ingress"].values()
    with load(tools, up, lambda a: a[3]["value"] in (10, 15) and a[3]["pid"] == pid) as clients:
        clients.wait_for_more(100)
        project.change("pipeline.py", "scale-2", "scale-3")
        project.change("pipeline.py", "Scale.bind(2", "Scale.bind(3")
        up.run("apply", str(project.file))
        tools.wait_for("scale to be built", lambda: project.notes_of_scale(3), why=up.why)
        building = up.wait("the candidate to be told", lambda s: "candidate" in s["status"]["nodes"]["scale"])
        clients.wait_for_more(100)
        assert {answer[3]["value"] for answer in clients.answers} == {10}
        project.scale_file(3).touch()
        up.wait("scale to be replaced", lambda s: tools.revisions(s)["scale"] != tools.revisions(before)["scale"])
        after = up.wait_settled("the upgrade to be finished")
        clients.wait_for_more(100)
    assert clients.failures == []
    assert clients.answers[-1][3]["value"] == 15
    candidate = building["status"]["nodes"]["scale"]["candidate"]
    assert candidate["revision"] == tools.revisions(after)["scale"]
    assert tools.replicas(building) == tools.replicas(before)
    unchanged(tools, before, after)
    assert project.notes_of_scale(3) == [f"built in {pid}"]
    tools.wait_for(
        "the old instance to be closed",
        lambda: project.notes_of_scale(2) == [f"built in {pid}", f"closed in {pid}"],
        why=lambda: str(project.notes_of_scale(2)),
    )
    assert only_changed(tools, before, after) == {"scale"}
    assert after["status"]["nodes"]["scale"] == told_by_the_ingress(tools, after, "scale")
    assert after["status"]["nodes"]["scale"]["placement"] == "Inline"


def test_new_arguments_of_an_inline_function_change_the_graph_only(up: Any, tools: Any, project: Project) -> None:
    """They belong to its step: the node and its revision stay."""
    before = up.wait_settled("a settled pipeline")
    with load(tools, up, lambda a: a[4]["word"] in ("first", "second")) as clients:
        clients.wait_for_more(100)
        project.change("pipeline.py", '"first"', '"second"')
        up.run("apply", str(project.file))
        after = up.wait_settled("the upgrade to be finished")
        clients.wait_for_more(100)
    assert clients.failures == []
    assert {answer[4]["word"] for answer in clients.answers} == {"first", "second"}
    assert clients.answers[-1][4]["word"] == "second"
    assert after["status"]["graph"] != before["status"]["graph"]
    unchanged(tools, before, after)
    assert only_changed(tools, before, after) == set()


def test_new_code_of_an_inline_function_has_replicas_of_its_own_until_the_ingress_is_replaced(
    up: Any, tools: Any, project: Project
) -> None:
    before = up.wait_settled("a settled pipeline")
    (old,) = tools.replicas(before)["ingress"].values()
    with load(tools, up) as clients:
        clients.wait_for_more(100)
        project.change("tell.py", 'VERSION = "one"', 'VERSION = "two"')
        up.run("apply", str(project.file))
        candidate = up.wait("a replica of the candidate", lambda s: tools.replicas(s).get("tell"))
        (own,) = tools.replicas(candidate)["tell"].values()
        promoted = up.wait(
            "tell to be replaced", lambda s: tools.revisions(s)["tell"] != tools.revisions(before)["tell"]
        )
        surge = up.wait(
            "the old ingress beside the new one",
            lambda s: sorted(r["pid"] == old for r in s["applications"]["ingress"]["replicas"]) == [False, True],
        )
        up.wait(
            "the replicas of its own to be gone",
            lambda s: not any(name.startswith("tell--") for name in s["applications"]),
        )
        after = up.wait_settled("the upgrade to be finished")
        clients.wait_for_more(100)
    assert clients.failures == []
    (new,) = tools.replicas(after)["ingress"].values()
    told = [(answer[4]["version"], answer[4]["pid"]) for answer in clients.answers]
    assert set(told) == {("one", old), ("two", own), ("two", new)}
    assert told[-1] == ("two", new)
    assert tools.replicas(surge)["ingress"].items() >= tools.replicas(before)["ingress"].items()
    assert promoted["status"]["nodes"]["tell"]["placement"] == "Dedicated"
    unchanged(tools, before, after, "ingress")
    assert only_changed(tools, before, after) == {"tell"}
    assert after["status"]["nodes"]["tell"] == told_by_the_ingress(tools, after, "tell")
    assert after["status"]["nodes"]["tell"]["placement"] == "Inline"


def test_a_line_of_one_module_moves_only_its_nodes_and_what_is_old_stays_old(
    up: Any, tools: Any, project: Project
) -> None:
    """The stable replica, the only one, is killed while the new one starts: it must come back with the code it had, and
    whoever has called it waits for that."""
    before = up.wait_settled("a settled pipeline")
    stable = f"left--{tools.revisions(before)['left']}"
    (pid,) = tools.replicas(before)["left"].values()
    with load(tools, up) as clients:
        clients.wait_for_more(50)
        project.change("left.py", 'VERSION = "one"', 'VERSION = "two"')
        # The new one does not start before the old one is back.
        go = project.let_left_wait("two")
        up.run("apply", str(project.file))
        up.wait("the candidate", lambda s: len([a for a in s["applications"] if a.startswith("left--")]) == 2)
        os.kill(pid, signal.SIGKILL)
        back = up.wait(
            "the stable replica to be back",
            lambda s: any(
                r["state"] == "RUNNING" and r["pid"] != pid
                for r in s["applications"].get(stable, {}).get("replicas", [])
            ),
        )
        assert tools.revisions(back)["left"] == tools.revisions(before)["left"]
        clients.answers.clear()
        clients.wait_for_more(50)
        assert {answer[0]["version"] for answer in clients.answers[:20]} == {"one"}
        go.touch()
        up.wait("left to be replaced", lambda s: tools.revisions(s)["left"] != tools.revisions(before)["left"])
        after = up.wait_settled("the upgrade to be finished")
        clients.wait_for_more(50)
    assert clients.failures == []
    assert clients.answers[-1][0]["version"] == "two"
    unchanged(tools, before, after, "left")


@pytest.mark.parametrize(
    ("what", "old", "new"),
    [
        ("constructor raises", "self.offset = offset", 'raise ValueError("no such offset")'),
        ("import fails", "import os\n", "import os\nimport no_such_module_at_all\n"),
        (
            "never healthy",
            "self.offset = offset",
            "self.offset = offset\n    def check_health(self): raise OSError('sick')",
        ),
    ],
)
def test_a_bad_model_leaves_the_old_one_serving(
    up: Any, tools: Any, project: Project, what: str, old: str, new: str
) -> None:
    before = up.wait_settled("a settled pipeline")
    # A module of its own, so that only one node changes.
    source = RIGHT.replace(old, new).replace("class Held", "class Held_").replace("class Holder", "class Holder_")
    (project.folder / "bad.py").write_text(source, encoding="utf-8")
    good = project.file.read_text(encoding="utf-8")
    document = up.run("compile", str(project.file)).stdout
    bad = project.folder / "bad.yaml"
    code = document.split("import: right:Right\n")[1].partition("\n")[0]
    bad.write_text(document.replace(f"import: right:Right\n{code}\n", "import: bad:Right\n"), encoding="utf-8")
    with load(tools, up, lambda a: a[1]["value"] == 6) as clients:
        clients.wait_for_more(50)
        up.run("apply", str(bad))
        failed = up.wait(
            f"the report that {what}", lambda s: s["status"]["nodes"]["right"].get("failedRevision"), timeout_s=180
        )
        clients.wait_for_more(100)
    assert clients.failures == []
    assert tools.conditions_of(failed)["Available"] == "True"
    assert tools.revisions(failed)["right"] == tools.revisions(before)["right"]
    assert failed["status"]["nodes"]["right"]["failedRevision"]["message"]
    if what != "never healthy":  # the others have raised somewhere, and the log says where
        lines = up.run("logs", "right", "--previous").stdout
        assert "node right could not be built" in lines
        assert "bad.py" in lines
    assert project.file.read_text(encoding="utf-8") == good
    up.run("apply", str(project.file))
    after = up.wait_settled("the good one again")
    unchanged(tools, before, after)


def test_a_killed_replica_comes_back_and_no_caller_notices(up: Any, tools: Any) -> None:
    before = up.wait_settled("a settled pipeline")
    (pid,) = tools.replicas(before)["right"].values()
    with load(tools, up, lambda a: a[1]["value"] == 6) as clients:
        clients.wait_for_more(100)
        os.kill(pid, signal.SIGKILL)
        up.wait(
            "a new replica of right",
            lambda s: tools.replicas(s).get("right") and pid not in tools.replicas(s)["right"].values(),
        )
        clients.wait_for_more(100)
        after = up.wait_settled("the pipeline to be ready again")
    assert clients.failures == []
    assert {answer[1]["pid"] for answer in clients.answers} == {pid, *tools.replicas(after)["right"].values()}
    unchanged(tools, before, after, "right")


@pytest.mark.parametrize(
    ("file", "old", "new", "was", "becomes"),
    [
        ("adapt.py", 'VERSION = "one"', 'VERSION = "two"', "one", "two"),
        ("pipeline.py", "adapt.inputs", "adapt.other", "two", "other"),
    ],
    ids=["code", "import"],
)
def test_a_changed_preprocessor_replaces_the_ingress_only(
    up: Any, tools: Any, project: Project, file: str, old: str, new: str, was: str, becomes: str
) -> None:
    before = up.wait_settled("a settled pipeline")
    with load(tools, up, lambda a: a[1]["value"] == 6) as clients:
        clients.wait_for_more(100)
        project.change(file, old, new)
        up.run("apply", str(project.file))
        up.wait(
            "another replica of the ingress",
            lambda s: (
                (now := tools.replicas(s).get("ingress")) and now.keys().isdisjoint(tools.replicas(before)["ingress"])
            ),
        )
        after = up.wait_settled("the change to be finished")
        clients.wait_for_more(100)
    assert clients.failures == []
    assert {answer[1]["adapted"] for answer in clients.answers} == {was, becomes}
    assert clients.answers[-1][1]["adapted"] == becomes
    unchanged(tools, before, after, "ingress")
    assert tools.revisions(after) == tools.revisions(before)


def test_a_start_with_edited_sources_brings_back_the_old_code_first(up: Any, tools: Any, project: Project) -> None:
    """Nothing but history and the copies of the sources knows the old code then."""
    before = up.wait_settled("a settled pipeline")
    version = up.call(5)[0]["version"]
    old = f"left--{tools.revisions(before)['left']}"
    up.run("down")
    assert up.wait_ended() == 0
    project.change("left.py", f'VERSION = "{version}"', 'VERSION = "edited"')
    # The new one does not start before the old one runs, which it can only with the code it had.
    go = project.let_left_wait("edited")
    up.start(project.file)
    back = up.wait(
        "the old revision to be back, with its old code",
        lambda s: any(r["state"] == "RUNNING" for r in s["applications"].get(old, {}).get("replicas", [])),
    )
    assert tools.revisions(back)["left"] == tools.revisions(before)["left"]
    go.touch()
    up.wait("left to be replaced", lambda s: tools.revisions(s)["left"] != tools.revisions(before)["left"])
    up.wait_settled("the upgrade to be finished")
    assert up.call(5)[0]["version"] == "edited"
