"""A compiled graph as a picture: boxes and arrows, written as mermaid, dot or JSON. The order is the graph's own."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from servepipe.graph.ir import (
    Attr,
    Call,
    Expr,
    Fallback,
    First,
    Graph,
    InputRef,
    ItemRef,
    Map,
    NodeRef,
    Path,
    Split,
    Step,
    StepRef,
    Switch,
    operands,
    parts,
)

__all__ = ["Arrow", "Box", "Drawing", "as_dot", "as_json", "as_mermaid", "draw"]


@dataclass(frozen=True)
class Box:
    """``kind``: input, output, item, node (called only through handles), or the kind of the step."""

    id: str
    kind: str
    label: str
    node: str | None = None
    method: str | None = None


@dataclass(frozen=True)
class Arrow:
    """``kind``: ``value`` flows along it, or the source holds a ``handle`` of the target."""

    source: str
    target: str
    label: str = ""
    kind: str = "value"


@dataclass(frozen=True)
class Drawing:
    boxes: tuple[Box, ...]
    arrows: tuple[Arrow, ...]


def draw(graph: Graph, held: Mapping[str, tuple[str, ...]]) -> Drawing:
    """The picture of a graph.

    Args:
        held: node -> the nodes whose handles its constructor gets.
    """
    boxes: list[Box] = []
    arrows: list[Arrow] = []
    reads_input = any(isinstance(part, InputRef) for expr in _expressions(graph) for part in parts(expr))
    if reads_input:
        boxes.append(Box("input", "input", "input"))
    for step in graph.steps:
        if isinstance(step, Map):
            boxes.append(Box(f"item:{step.name}", "item", f"each item of {step.name}"))
            arrows.extend(_incoming(step.over, f"item:{step.name}", ""))
    for step in graph.steps:
        boxes.append(_box(step))
        for expr, label in _labelled_operands(step):
            arrows.extend(_incoming(expr, f"step:{step.name}", label))
        handles = _handles(step, held)
        arrows.extend(Arrow(f"step:{step.name}", _home(graph, node), "calls", "handle") for node in handles)
    for node in _only_held(graph, held):
        boxes.append(Box(f"node:{node}", "node", node, node=node))
        arrows.extend(Arrow(f"node:{node}", _home(graph, other), "calls", "handle") for other in held.get(node, ()))
    boxes.append(Box("output", "output", "output"))
    arrows.extend(_incoming(graph.output, "output", ""))
    return Drawing(tuple(boxes), tuple(dict.fromkeys(arrows)))


def _expressions(graph: Graph) -> Iterator[Expr]:
    yield graph.output
    for step in graph.steps:
        yield from operands(step)


def _handles(step: Step, held: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
    """The nodes that a step can call besides its own: by its node's constructor arguments, or as arguments."""
    if isinstance(step, Call):
        yield from held.get(step.node, ())
    for expr in operands(step):
        yield from (part.node for part in parts(expr) if isinstance(part, NodeRef))


def _only_held(graph: Graph, held: Mapping[str, tuple[str, ...]]) -> list[str]:
    """The nodes that no step calls, only holders of their handles, in the order in which they are reached."""
    found: dict[str, None] = {}
    waiting = [node for step in graph.steps for node in _handles(step, held)]
    for node in waiting:
        if node not in found:
            found[node] = None
            waiting.extend(held.get(node, ()))
    return [node for node in found if _home(graph, node) == f"node:{node}"]


def _home(graph: Graph, node: str) -> str:
    """The box of a node: its first step, or a box of its own where no step calls it."""
    for step in graph.steps:
        if isinstance(step, Call) and step.node == node:
            return f"step:{step.name}"
    return f"node:{node}"


def _box(step: Step) -> Box:
    identity = f"step:{step.name}"
    if isinstance(step, Call):
        call = f"{step.node}.{step.method}" if step.method else f"{step.node}"
        label = step.name if call == step.name else f"{step.name}\n{call}"
        return Box(identity, "call", label, step.node, step.method)
    kind = type(step).__name__.lower()
    return Box(identity, kind, f"{step.name}\n{kind}")


def _labelled_operands(step: Step) -> Iterator[tuple[Expr, str]]:
    match step:
        case Switch():
            yield step.on, "on"
            for when, then in step.cases:
                yield then, f"is {json.dumps(when, ensure_ascii=False)}"
            if step.default is not None:
                yield step.default, "else"
        case Split():
            for weight, then in step.branches:
                yield then, f"{weight} %"
            if step.on is not None:
                yield step.on, "on"
        case Map():
            yield step.each, "each"
        case Fallback():
            for number, option in enumerate(step.options, 1):
                yield option, str(number)
        case First():
            for option in step.options:
                yield option, ""
        case Call():
            for expr in operands(step):
                yield expr, ""


def _incoming(expr: Expr, target: str, label: str) -> Iterator[Arrow]:
    for part in parts(expr):
        match part:
            case InputRef(path):
                yield Arrow("input", target, _join(label, _path(path)))
            case StepRef(step, path):
                yield Arrow(f"step:{step}", target, _join(label, _path(path)))
            case ItemRef(over, path):
                yield Arrow(f"item:{over}", target, _join(label, _path(path)))


def _join(label: str, path: str) -> str:
    return f"{label} {path}".strip()


def _path(path: Path) -> str:
    return "".join(
        f".{key.name}" if isinstance(key, Attr) else f"[{json.dumps(key, ensure_ascii=False)}]" for key in path
    )


# Formats


def as_json(drawing: Drawing) -> str:
    """Boxes and arrows as JSON; fields that do not apply are left out."""

    def fields(item: Box | Arrow) -> dict[str, Any]:
        return {key: value for key, value in asdict(item).items() if value not in (None, "")}

    content = {"boxes": list(map(fields, drawing.boxes)), "arrows": list(map(fields, drawing.arrows))}
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


_MERMAID_SHAPES = {
    "input": ("([", "])"),
    "output": ("([", "])"),
    "item": ("([", "])"),
    "switch": ("{", "}"),
    "split": ("{", "}"),
    "node": ("[[", "]]"),
}


def as_mermaid(drawing: Drawing) -> str:
    """A flowchart for Markdown. Names become numbers as identifiers: a step called ``end`` breaks mermaid."""
    numbers = {box.id: f"n{number}" for number, box in enumerate(drawing.boxes)}
    lines = ["flowchart LR"]
    for box in drawing.boxes:
        left, right = _MERMAID_SHAPES.get(box.kind, ("[", "]"))
        lines.append(f"  {numbers[box.id]}{left}{_mermaid_text(box.label)}{right}")
    for arrow in drawing.arrows:
        line = "-.->" if arrow.kind == "handle" else "-->"
        label = f"|{_mermaid_text(arrow.label)}|" if arrow.label else ""
        lines.append(f"  {numbers[arrow.source]} {line}{label} {numbers[arrow.target]}")
    return "\n".join(lines) + "\n"


def _mermaid_text(text: str) -> str:
    for character, entity in (("#", "#35;"), ('"', "#quot;"), ("<", "#lt;"), (">", "#gt;"), ("\n", "<br>")):
        text = text.replace(character, entity)
    return f'"{text}"'


_DOT_SHAPES = {"input": "oval", "output": "oval", "item": "oval", "switch": "diamond", "split": "diamond"}


def as_dot(drawing: Drawing, name: str) -> str:
    """For Graphviz: ``servepipe graph pipeline.yaml --format dot | dot -Tsvg``."""
    lines = [f"digraph {_dot_text(name)} {{", "  rankdir=LR;", "  node [shape=box];"]
    for box in drawing.boxes:
        shape = f", shape={_DOT_SHAPES[box.kind]}" if box.kind in _DOT_SHAPES else ""
        lines.append(f"  {_dot_text(box.id)} [label={_dot_text(box.label)}{shape}];")
    for arrow in drawing.arrows:
        options = [f"label={_dot_text(arrow.label)}"] if arrow.label else []
        options += ["style=dotted"] if arrow.kind == "handle" else []
        suffix = f" [{', '.join(options)}]" if options else ""
        lines.append(f"  {_dot_text(arrow.source)} -> {_dot_text(arrow.target)}{suffix};")
    return "\n".join([*lines, "}"]) + "\n"


def _dot_text(text: str) -> str:
    text = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{text}"'
