"""``servepipe validate``, ``diff`` and ``graph``: look at pipelines without running them."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable
from typing import TYPE_CHECKING

from servepipe.cli.difference import print_difference
from servepipe.cli.files import add_output, read_pipeline, write_output
from servepipe.cli.target import add_cluster_options, named_cluster
from servepipe.cli.trouble import report
from servepipe.errors import MissingExtraError, ServePipeError

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
Compare two pipelines by what they mean: order of fields, comments and quoting do not count. One file alone is compared
with the object in the cluster: what `servepipe apply` would change there.
Exit status: 0 the same, 1 different, 2 trouble.

  servepipe diff pipeline.yaml pipeline.py
  servepipe diff pipeline.yaml -n shop
"""
_LIVE = "servepipe.diff"
"""Entry point group of what compares a file with a cluster."""

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
    diff.add_argument("new", metavar="B", nargs="?", help="the same; without it A is compared with the cluster")
    add_cluster_options(diff)
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

    if arguments.new is None:
        return _against_the_cluster(arguments)
    if named_cluster(arguments):
        raise ServePipeError(
            "two files are compared without a cluster", fix="Name one to compare it with what is there."
        )
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
    print_difference(lines)
    return 1 if lines else 0


def _against_the_cluster(arguments: argparse.Namespace) -> int:
    """What another distribution knows how to do: the SDK speaks to no cluster."""
    from importlib.metadata import entry_points

    found = list(entry_points(group=_LIVE, name="diff"))
    if not found:
        raise MissingExtraError(
            "comparing with a cluster is a part that is not installed", fix='pip install "servepipe[operator]"'
        )
    compare: Callable[[argparse.Namespace], int] = found[0].load()
    return compare(arguments)


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
