"""Who wins when the author's file meets what ops changed in between: docs/resource.md has the table, kubectl decides.

The real kubectl and API server are what is tested here: the schema has to be such that they merge as documented.
"""

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bed.client import Object
from bed.control_plane import ControlPlane
from cluster_cli import GRAPH, NAME, pipeline

from servepipe.cli import main


def part(spec: Object) -> Object:
    """A file with only this much of the spec."""
    return {**pipeline(), "spec": spec}


def over(old: Any, new: Any) -> Any:
    """As a person types `new` into `old`: objects field by field."""
    if isinstance(old, dict) and isinstance(new, dict):
        return {**old, **{key: over(old.get(key), value) for key, value in new.items()}}
    return new


class Person:
    """Somebody with kubectl, in one of the ways to use it. Each method returns what kubectl complained of, or ''."""

    def __init__(self, plane: ControlPlane, namespace: str, folder: Path) -> None:
        self.plane, self.namespace, self.folder = plane, namespace, folder
        self.path = f"/apis/servepipe.dev/v1alpha1/namespaces/{namespace}/servepipelines/{NAME}"
        self.editor = folder / "editor"
        self.editor.write_text('#!/bin/sh\nexec cp "$WANTED" "$1"\n')
        self.editor.chmod(0o755)

    def kubectl(self, *arguments: str, file: Object | None = None, env: dict[str, str] | None = None) -> str:
        text = None if file is None else json.dumps(file)
        done = self.plane.kubectl("-n", self.namespace, *arguments, stdin=text, check=False, env=env)
        return "" if done.returncode == 0 else done.stderr

    def live(self) -> Object:
        return self.plane.api.get(self.path)

    def spec(self) -> Object:
        spec: Object = self.live()["spec"]
        return spec

    def create(self, file: Object) -> str:
        return self.kubectl("create", "-f", "-", file=file)

    def apply(self, file: Object) -> str:
        return self.kubectl("apply", "-f", "-", file=file)

    def server_side(self, file: Object, *flags: str) -> str:
        return self.kubectl("apply", "--server-side", *flags, "-f", "-", file=file)

    def servepipe(self, file: Object, *flags: str) -> str:
        """`servepipe apply`; its kubeconfig is that of kubectl."""
        path = self.folder / "pipeline.json"
        path.write_text(json.dumps(file))
        place = ("-n", self.namespace, "--kubeconfig", str(self.plane.kubeconfig))
        complaint = io.StringIO()
        with contextlib.redirect_stderr(complaint):
            status = main(["apply", "-f", str(path), "--no-wait", *place, *flags])
        assert (status == 0) == (complaint.getvalue() == ""), complaint.getvalue()
        return complaint.getvalue()

    def patch(self, file: Object) -> str:
        return self.kubectl("patch", "svp", NAME, "--type=merge", "-p", json.dumps({"spec": file["spec"]}))

    def edit(self, file: Object) -> str:
        return self.edit_into(over(self.live(), {"spec": file["spec"]}))

    def edit_into(self, obj: Object) -> str:
        """The editor leaves `obj` in the place of what kubectl shows in it."""
        wanted = self.folder / "wanted"
        wanted.write_text(json.dumps(obj))
        return self.kubectl("edit", "svp", NAME, env={"EDITOR": str(self.editor), "WANTED": str(wanted)})


@pytest.fixture
def person(control_plane: ControlPlane, namespace: str, tmp_path: Path) -> Person:
    return Person(control_plane, namespace, tmp_path)


# --- The table --------------------------------------------------------------------------------------------------------

SEVEN = part({"nodes": {"m1": {"replicas": 7}}})
AUTHORS: dict[str, tuple[Callable[[Person, Object], str], Callable[[Person, Object], str]]] = {
    "kubectl apply": (Person.apply, Person.apply),
    "kubectl apply --server-side": (Person.server_side, Person.server_side),
    "kubectl patch --type merge": (Person.create, Person.patch),
    "kubectl edit": (Person.create, Person.edit),
    "servepipe apply": (Person.servepipe, Person.servepipe),
}
OPS: dict[str, Callable[[Person], str]] = {
    "kubectl apply": lambda ops: ops.apply(pipeline(replicas=7)),
    "kubectl apply --server-side": lambda ops: ops.server_side(SEVEN, "--field-manager=ops", "--force-conflicts"),
    "kubectl patch --type merge": lambda ops: ops.patch(SEVEN),
    "kubectl edit": lambda ops: ops.edit(SEVEN),
}


# Who holds the field afterwards, as kubectl names them where it refuses.
NAMES = {
    "kubectl apply --server-side": "ops",
    "kubectl patch --type merge": "kubectl-patch",
    "kubectl edit": "kubectl-edit",
}


def documented() -> dict[str, list[str]]:
    """The rows of the table in docs/resource.md by the author's way: the winner in each of its four columns."""
    text = (Path(__file__).parents[2] / "docs" / "resource.md").read_text()
    section = text.partition("\n## The file and what ops changed\n")[2].partition("\n## ")[0]
    rows = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in section.splitlines() if "|" in line]
    return {row[0]: row[1:] for row in rows[2:]}


def test_the_table_has_every_way_to_apply() -> None:
    assert list(documented()) == list(AUTHORS)
    assert {len(row) for row in documented().values()} == {4}


@pytest.mark.parametrize("ops", OPS)
@pytest.mark.parametrize("author", AUTHORS)
@pytest.mark.parametrize("file", ["sets", "omits"])
def test_the_documented_one_wins(person: Person, file: str, author: str, ops: str) -> None:
    column = (0 if file == "sets" else 1) + (2 if ops == "kubectl apply" else 0)
    winner = documented()[author][column]
    first, again = AUTHORS[author]
    given = {"replicas": 3} if file == "sets" else {}
    assert first(person, pipeline(**given)) == ""
    assert OPS[ops](person) == ""
    assert person.spec() == pipeline(replicas=7)["spec"]
    complaint = again(person, pipeline("shop:2", **given))
    if winner == "refused":
        assert f'conflict with "{NAMES[ops]}"' in complaint
        assert ".spec.nodes.m1.replicas" in complaint
        assert person.spec() == pipeline(replicas=7)["spec"]
        assert person.server_side(pipeline("shop:2", **given), "--force-conflicts") == ""
        winner = "file"
    else:
        assert complaint == ""
    left: dict[str, Object] = {"file": given, "ops": {"replicas": 7}, "removed": {}}
    assert person.spec() == pipeline("shop:2", **left[winner])["spec"]


# --- What holds however it is applied ---------------------------------------------------------------------------------


@pytest.mark.parametrize("apply", [Person.apply, Person.server_side], ids=["plain", "server-side"])
def test_applying_the_same_again_writes_nothing(person: Person, apply: Callable[[Person, Object], str]) -> None:
    file = pipeline(args=[{"$float": "1.0"}, None, {"a": []}], env=[{"name": "A", "value": "1"}])
    assert apply(person, file) == ""
    before = person.live()
    assert apply(person, file) == ""
    assert person.live() == before
    person.patch(SEVEN)
    before = person.live()
    assert apply(person, file) == ""
    assert person.live() == before


@pytest.mark.parametrize("author", AUTHORS)
def test_steps_and_arguments_are_replaced_whole(person: Person, author: str) -> None:
    first, again = AUTHORS[author]
    assert first(person, pipeline(args=[1, {"a": 1, "b": 2}])) == ""
    file = pipeline(args=[{"c": 3}])
    file["spec"]["graph"] = {"steps": [{"name": "second", "node": "m2"}], "output": {"$step": "second"}}
    assert again(person, file) == ""
    assert person.spec() == file["spec"]


def test_a_step_of_somebody_else_is_a_conflict_over_the_whole_list(person: Person) -> None:
    assert person.server_side(pipeline()) == ""
    longer = [*GRAPH["steps"], {"name": "third", "node": "m1"}]
    assert person.patch(part({"graph": {"steps": longer}})) == ""
    complaint = person.server_side(pipeline("shop:2"))
    assert 'conflict with "kubectl-patch"' in complaint
    assert ".spec.graph.steps\n" in complaint
    assert person.server_side(pipeline("shop:2"), "--force-conflicts") == ""
    assert person.spec() == pipeline("shop:2")["spec"]


def test_variables_of_somebody_else_stay_only_with_server_side_apply(person: Person) -> None:
    author, ops = {"name": "A", "value": "author"}, {"name": "O", "value": "ops"}
    both = part({"nodes": {"m1": {"env": [ops]}}})
    assert person.server_side(pipeline(env=[author])) == ""
    assert person.server_side(both, "--field-manager=ops") == ""
    assert person.server_side(pipeline("shop:2", env=[author])) == ""
    assert person.spec()["nodes"]["m1"]["env"] == [author, ops]
    for replacing in (Person.apply, Person.patch, Person.edit):
        assert person.server_side(both, "--field-manager=ops") == ""
        assert person.spec()["nodes"]["m1"]["env"] == [author, ops]
        assert replacing(person, pipeline("shop:3", env=[author])) == ""
        assert person.spec()["nodes"]["m1"]["env"] == [author]


@pytest.mark.parametrize("author", AUTHORS)
def test_nodes_of_other_people_stay(person: Person, author: str) -> None:
    first, again = AUTHORS[author]
    assert first(person, pipeline()) == ""
    theirs = {"import": "theirs:M3", "replicas": 2}
    assert person.patch(part({"nodes": {"m3": theirs}})) == ""
    assert again(person, pipeline("shop:2")) == ""
    wanted = pipeline("shop:2")["spec"]
    wanted["nodes"]["m3"] = theirs
    assert person.spec() == wanted


@pytest.mark.parametrize("apply", [Person.apply, Person.server_side], ids=["plain", "server-side"])
def test_a_node_that_leaves_the_file_goes_unless_somebody_else_holds_a_part_of_it(
    person: Person, apply: Callable[[Person, Object], str]
) -> None:
    assert apply(person, pipeline()) == ""
    shorter = pipeline()
    del shorter["spec"]["nodes"]["m2"]
    shorter["spec"]["graph"] = {"steps": GRAPH["steps"][:1], "output": {"$step": "first"}}
    held = part({"nodes": {"m2": {"replicas": 4}}})
    assert person.server_side(held, "--field-manager=ops") == ""
    complaint = apply(person, shorter)
    if apply is Person.server_side:
        # What would stay is a node of which only `replicas` is left, so the API server keeps all as it was.
        assert "spec.nodes.m2.import: Required value" in complaint
        assert person.spec() == over(pipeline()["spec"], held["spec"])
        assert person.edit_into({**person.live(), "spec": shorter["spec"]}) == ""
        complaint = apply(person, shorter)
    assert complaint == ""
    assert person.spec() == shorter["spec"]


PARTS: list[Object] = [
    {},
    {"image": "shop:2"},
    {"graph": GRAPH},
    {"nodes": {}},
    {"nodes": {"m1": {"replicas": 5}}},
    {"graph": GRAPH, "nodes": {"m1": {"import": "shop:M1"}}},
    {"graph": GRAPH, "nodes": {"m1": {"replicas": 5}, "m2": {}}},
]


@pytest.mark.parametrize("apply", [Person.apply, Person.server_side], ids=["plain", "server-side"])
def test_a_file_with_only_a_part_cannot_empty_the_object(
    person: Person, apply: Callable[[Person, Object], str]
) -> None:
    assert apply(person, pipeline(replicas=3)) == ""
    before = person.live()
    taken = [spec for spec in PARTS if "is invalid: " not in apply(person, part(spec))]
    assert taken == []
    assert person.live() == before


def test_a_merge_patch_cannot_empty_the_object(person: Person) -> None:
    assert person.create(pipeline(replicas=3)) == ""
    before = person.live()
    patches: list[Any] = [
        None,
        {"graph": None},
        {"nodes": None},
        {"graph": {"steps": None}},
        {"nodes": {"m1": {"import": None}}},
        {"nodes": {"m2": None}},
    ]
    taken = [spec for spec in patches if "is invalid: " not in person.patch(part(spec))]
    assert taken == []
    assert person.live() == before
