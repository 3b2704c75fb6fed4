import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from servepipe.cli.drawing import as_dot, as_json, as_mermaid, draw
from servepipe.graph.ir import (
    Attr,
    Call,
    Const,
    DictOf,
    Fallback,
    First,
    Graph,
    InputRef,
    ItemRef,
    ListOf,
    Map,
    NodeRef,
    Split,
    StepRef,
    Switch,
)

Run = Callable[..., Any]
Write = Callable[[str, str], Path]


@pytest.fixture
def compiled(run: Run, diamond: Path) -> Path:
    assert run("compile", diamond, "-o", "diamond.yaml").status == 0
    return Path("diamond.yaml")


def test_valid_files(run: Run, compiled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(compiled.read_bytes())))
    ran = run("validate", compiled, "diamond.py", "-")
    assert ran.status == 0
    assert ran.out == "diamond.yaml: valid, diamond\ndiamond.py: valid, diamond\nstandard input: valid, diamond\n"


def test_every_problem_of_every_file_is_told(run: Run, write: Write, compiled: Path) -> None:
    write("a.yaml", compiled.read_text().replace("args: [1]", "agrs: [1]").replace("name: diamond", "name: Dia_mond"))
    write("b.yaml", compiled.read_text().replace("$step: m1-output", "$step: m3-output"))
    ran = run("validate", "a.yaml", compiled, "b.yaml", "gone.yaml")
    assert ran.status == 2
    assert ran.out == "diamond.yaml: valid, diamond\n"
    for where in ("a.yaml: metadata.name", "a.yaml: spec.nodes.m1", "b.yaml: spec.graph.steps[2].args[0]", "gone.yaml"):
        assert f"  where: {where}\n" in ran.err
    assert 'Did you mean "args"?' in ran.err


def test_no_difference(run: Run, write: Write, compiled: Path) -> None:
    document = compiled.read_text().replace("args: [1]", "args:\n      - 1 # one")
    document = document.replace("name: diamond", 'name: "diamond"')
    write("commented.yaml", f"# a comment\n{document}status: {{url: x}}\n")
    for other in (compiled, "diamond.py", "commented.yaml"):
        ran = run("diff", compiled, other)
        assert (ran.status, ran.out) == (0, ""), ran.err


def test_a_difference(run: Run, write: Write, compiled: Path) -> None:
    write("other.yaml", compiled.read_text().replace("args: [2]", "args: [2]\n      replicas: 3"))
    ran = run("diff", compiled, "other.yaml")
    assert ran.status == 1
    lines = ran.out.splitlines()
    assert lines[:2] == ["--- diamond.yaml", "+++ other.yaml"]
    assert [line for line in lines[2:] if line[0] in "+-"] == ["+      replicas: 3"]


def test_a_difference_has_colours_on_a_terminal(
    run: Run, write: Write, compiled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("other.yaml", compiled.read_text().replace("args: [2]", "args: [3]"))
    monkeypatch.setattr("servepipe.cli.difference.sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    ran = run("diff", compiled, "other.yaml")
    assert "\033[31m-      args: [2]\033[0m\n\033[32m+      args: [3]\033[0m\n" in ran.out
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\033" not in run("diff", compiled, "other.yaml").out


def test_one_file_is_compared_with_a_cluster_by_another_distribution(
    run: Run, compiled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    class Entry:
        def load(self) -> Any:
            return lambda arguments: seen.append((arguments.old, arguments.namespace, arguments.context)) or 1

    monkeypatch.setattr("importlib.metadata.entry_points", lambda **wanted: [Entry()])
    assert run("diff", compiled, "-n", "shop", "--kube").status == 1
    assert seen == [(str(compiled), "shop", None)]
    monkeypatch.setattr("importlib.metadata.entry_points", lambda **wanted: [])
    ran = run("diff", compiled)
    assert ran.status == 2
    assert 'pip install "servepipe[operator]"' in ran.err
    assert "two files are compared without a cluster" in run("diff", compiled, compiled, "-n", "shop").err


@pytest.mark.parametrize(
    "files", [("gone.yaml", "diamond.yaml"), ("diamond.yaml", "gone.py"), ("broken.yaml", "diamond.yaml")]
)
def test_trouble_is_not_a_difference(run: Run, write: Write, compiled: Path, files: tuple[str, str]) -> None:
    write("broken.yaml", "kind: Deployment\n")
    ran = run("diff", *files)
    assert ran.status == 2
    assert ran.out == ""
    assert ran.err.startswith("error: ")


def test_standard_input_can_be_read_once(run: Run, compiled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(compiled.read_bytes())))
    ran = run("diff", "-", "-")
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.startswith("error: standard input is empty\n")
    monkeypatch.setattr(sys, "stdin", None)
    assert run("validate", "-").err.startswith("error: standard input is closed\n")


def test_the_graph_of_a_file(run: Run, compiled: Path) -> None:
    mermaid = run("graph", compiled)
    assert mermaid.out == run("graph", "diamond.py", "--format", "mermaid").out
    assert mermaid.out == (
        "flowchart LR\n"
        '  n0(["input"])\n'
        '  n1["m1-output<br>m1.forward"]\n'
        '  n2["m2-output<br>m2.forward"]\n'
        '  n3["ray-dag<br>ensemble"]\n'
        '  n4(["output"])\n'
        '  n0 -->|"[0]"| n1\n'
        '  n0 -->|"[1]"| n2\n'
        "  n1 --> n3\n"
        "  n2 --> n3\n"
        '  n0 -->|"[2]"| n3\n'
        "  n3 --> n4\n"
    )
    assert run("graph", compiled, "--format", "dot", "-o", "graph.dot").out == ""
    assert Path("graph.dot").read_text() == (
        'digraph "diamond" {\n'
        "  rankdir=LR;\n"
        "  node [shape=box];\n"
        '  "input" [label="input", shape=oval];\n'
        '  "step:m1-output" [label="m1-output\\nm1.forward"];\n'
        '  "step:m2-output" [label="m2-output\\nm2.forward"];\n'
        '  "step:ray-dag" [label="ray-dag\\nensemble"];\n'
        '  "output" [label="output", shape=oval];\n'
        '  "input" -> "step:m1-output" [label="[0]"];\n'
        '  "input" -> "step:m2-output" [label="[1]"];\n'
        '  "step:m1-output" -> "step:ray-dag";\n'
        '  "step:m2-output" -> "step:ray-dag";\n'
        '  "input" -> "step:ray-dag" [label="[2]"];\n'
        '  "step:ray-dag" -> "output";\n'
        "}\n"
    )
    drawn = json.loads(run("graph", compiled, "--format", "json").out)
    assert drawn["boxes"][1] == {
        "id": "step:m1-output",
        "kind": "call",
        "label": "m1-output\nm1.forward",
        "node": "m1",
        "method": "forward",
    }
    assert drawn["arrows"][0] == {"source": "input", "target": "step:m1-output", "label": "[0]", "kind": "value"}


EVERYTHING = Graph(
    steps=(
        Call("end", "tokens", None, (InputRef(("text",)),)),
        Call("each-one", "m", "run", (ItemRef("all", ("a", Attr("b"))), DictOf((("k", NodeRef("helper")),)))),
        Map("all", StepRef("end", (0,)), StepRef("each-one"), 4),
        Switch("kind", InputRef(("kind",)), (('a"<b>\\', StepRef("all")), (True, Const(1))), StepRef("end")),
        Split("try", ((90, StepRef("kind")), (10, Const(None))), InputRef(("user",))),
        Fallback("safe", (StepRef("try"), ListOf((StepRef("all"), StepRef("all"))))),
        First("fast", (StepRef("safe"), StepRef("kind"))),
    ),
    output=DictOf((("answer", StepRef("fast", ("k#1",))), ("const", Const(1)))),
)
HELD = {"m": ("tokens", "inner"), "inner": ("deeper",), "deeper": (), "helper": ("inner",)}


def test_every_kind_of_step_as_mermaid() -> None:
    assert as_mermaid(draw(EVERYTHING, HELD)) == (
        "flowchart LR\n"
        '  n0(["input"])\n'
        '  n1(["each item of all"])\n'
        '  n2["end<br>tokens"]\n'
        '  n3["each-one<br>m.run"]\n'
        '  n4["all<br>map"]\n'
        '  n5{"kind<br>switch"}\n'
        '  n6{"try<br>split"}\n'
        '  n7["safe<br>fallback"]\n'
        '  n8["fast<br>first"]\n'
        '  n9[["inner"]]\n'
        '  n10[["helper"]]\n'
        '  n11[["deeper"]]\n'
        '  n12(["output"])\n'
        '  n2 -->|"[0]"| n1\n'
        '  n0 -->|"[#quot;text#quot;]"| n2\n'
        '  n1 -->|"[#quot;a#quot;].b"| n3\n'
        '  n3 -.->|"calls"| n2\n'
        '  n3 -.->|"calls"| n9\n'
        '  n3 -.->|"calls"| n10\n'
        '  n3 -->|"each"| n4\n'
        '  n0 -->|"on [#quot;kind#quot;]"| n5\n'
        '  n4 -->|"is #quot;a\\#quot;#lt;b#gt;\\\\#quot;"| n5\n'
        '  n2 -->|"else"| n5\n'
        '  n5 -->|"90 %"| n6\n'
        '  n0 -->|"on [#quot;user#quot;]"| n6\n'
        '  n6 -->|"1"| n7\n'
        '  n4 -->|"2"| n7\n'
        "  n7 --> n8\n"
        "  n5 --> n8\n"
        '  n9 -.->|"calls"| n11\n'
        '  n10 -.->|"calls"| n9\n'
        '  n8 -->|"[#quot;k#35;1#quot;]"| n12\n'
    )


def test_every_kind_of_step_as_dot_and_json() -> None:
    drawing = draw(EVERYTHING, HELD)
    dot = as_dot(drawing, "p")
    assert '"step:m" ' not in dot
    assert '  "step:kind" [label="kind\\nswitch", shape=diamond];\n' in dot
    assert '  "step:each-one" -> "step:end" [label="calls", style=dotted];\n' in dot
    assert r'  "step:all" -> "step:kind" [label="is \"a\\\"<b>\\\\\""];' in dot
    content = json.loads(as_json(drawing))
    assert len(content["boxes"]) == 13
    ids = {box["id"] for box in content["boxes"]}
    assert {end for arrow in content["arrows"] for end in (arrow["source"], arrow["target"])} <= ids


def test_a_graph_without_input_has_no_input_box() -> None:
    drawing = draw(Graph((Call("one", "one"),), StepRef("one")), {})
    assert [box.id for box in drawing.boxes] == ["step:one", "output"]
    assert drawing.boxes[0].label == "one"


def test_a_step_named_like_a_keyword_of_mermaid_is_only_a_label() -> None:
    lines = as_mermaid(draw(EVERYTHING, HELD)).splitlines()
    assert not [line for line in lines if line.split()[0] in ("end", "subgraph", "graph")]
