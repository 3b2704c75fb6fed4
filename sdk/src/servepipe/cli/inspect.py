"""``servepipe validate``, ``diff`` and ``graph``: look at pipelines without running them."""

from __future__ import annotations

import argparse
import difflib
import sys
from typing import TYPE_CHECKING

from servepipe.cli.files import add_output, read_pipeline, write_output
from servepipe.cli.trouble import report
from servepipe.errors import ServePipeError

if TYPE_CHECKING:
    from servepipe.cli import Commands

__all__ = ["register"]

_VALIDATE = """\
Check ServePipeline files: fields and their types, references between steps and nodes, cycles, bounds. Also checks what
Python files would compile to.

  servepipe validate pipeline.yaml
  kubectl get servepipeline diamond -o yaml | servepipe validate -
"""

_DIFF = """\
Compare two pipelines by what they mean: order of fields, comments and quoting do not count.
Exit status: 0 the same, 1 different, 2 trouble.

  servepipe diff pipeline.yaml pipeline.py
  kubectl get servepipeline diamond -o yaml | servepipe diff - pipeline.yaml
"""

_GRAPH = """\
Draw the compiled graph.

  servepipe graph pipeline.py                                mermaid, for Markdown
  servepipe graph pipeline.yaml --format dot | dot -Tsvg     Graphviz
  servepipe graph pipeline.yaml --format json                for other tools
"""

_PIPELINE = "YAML file, FILE.py[:APP], or - for YAML from standard input"


def register(commands: Commands) -> None:
    validate = commands.add_parser("validate", help="check files", description=_VALIDATE)
    validate.add_argument("files", metavar="FILE", nargs="+", help=_PIPELINE)
    validate.set_defaults(run=_validate)

    diff = commands.add_parser("diff", help="compare two pipelines", description=_DIFF)
    diff.add_argument("old", metavar="A", help=_PIPELINE)
    diff.add_argument("new", metavar="B", help=_PIPELINE)
    diff.set_defaults(run=_diff)

    graph = commands.add_parser("graph", help="draw the compiled graph", description=_GRAPH)
    graph.add_argument("file", metavar="FILE", help=_PIPELINE)
    graph.add_argument("--format", choices=["mermaid", "dot", "json"], default="mermaid", help="default: mermaid")
    add_output(graph)
    graph.set_defaults(run=_graph)


def _validate(arguments: argparse.Namespace) -> int:
    status = 0
    for file in arguments.files:
        try:
            source = read_pipeline(file)
        except (ServePipeError, OSError) as error:
            status = report(error)
        else:
            print(f"{source.label}: valid, {source.resource.name}")
    return status


def _diff(arguments: argparse.Namespace) -> int:
    from servepipe import api

    old, new = read_pipeline(arguments.old), read_pipeline(arguments.new)
    lines = list(
        difflib.unified_diff(
            api.write(old.resource).splitlines(),
            api.write(new.resource).splitlines(),
            old.label,
            new.label,
            lineterm="",
        )
    )
    for line in lines:
        print(_coloured(line) if sys.stdout.isatty() else line)
    return 1 if lines else 0


def _coloured(line: str) -> str:
    colour = {"+": "32", "-": "31", "@": "36"}.get(line[:1])
    return f"\033[{colour}m{line}\033[0m" if colour else line


def _graph(arguments: argparse.Namespace) -> None:
    from servepipe.cli.drawing import as_dot, as_json, as_mermaid, draw
    from servepipe.cli.serve_export import held_nodes

    resource = read_pipeline(arguments.file).resource
    held = {name: held_nodes(node) for name, node in resource.spec.nodes.items()}
    drawing = draw(resource.spec.graph.to_ir(), held)
    if arguments.format == "json":
        text = as_json(drawing)
    else:
        text = as_mermaid(drawing) if arguments.format == "mermaid" else as_dot(drawing, resource.name)
    write_output(text, arguments.output)
