"""``servepipe compile``: from a Python file to the resource."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from servepipe.cli.files import (
    STANDARD,
    Source,
    add_output,
    checked,
    located_in,
    read_document,
    read_pipeline,
    write_output,
)
from servepipe.errors import ResourceError

if TYPE_CHECKING:
    from servepipe.cli import Commands

__all__ = ["add_overrides", "merged", "register"]

_DESCRIPTION = """\
Write the ServePipeline that a Python file builds. The file is imported, nothing is run and no cluster is contacted;
the same sources always give the same bytes.

  servepipe compile pipeline.py                                   to standard output
  servepipe compile pipeline.py -o pipeline.yaml                  to a file
  servepipe compile pipeline.py:staging_app                       a file that builds several Apps
  servepipe compile pipeline.py -f prod.yaml --image acme/m:1.4   with settings of an environment
  servepipe compile pipeline.py --image m1=acme/m1:2              with an image for one node

What comes later wins: what the Python file says, the overlays in the order given, --image.
An overlay holds the fields to set, nodes by name; null removes a field:

  spec:
    nodes:
      m1: {replicas: 3, resources: {gpu: "1"}}
    ingress: {replicas: 2}
"""


def register(commands: Commands) -> None:
    parser = commands.add_parser("compile", help="write the resource of a pipeline", description=_DESCRIPTION)
    parser.add_argument(
        "file", metavar="FILE[:APP]", help="the Python file, and the name of the App if it builds several"
    )
    add_output(parser)
    add_overrides(parser)
    parser.set_defaults(run=_run)


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """``-f`` and ``--image``, which `merged` applies."""
    parser.add_argument(
        "-f",
        "--overlay",
        metavar="OVERLAY",
        action="append",
        default=[],
        dest="overlays",
        help="YAML file with fields to set on top; may be repeated; - is standard input",
    )
    parser.add_argument(
        "--image",
        metavar="[NODE=]IMG",
        action="append",
        default=[],
        dest="images",
        help="image of all nodes, or of one; may be repeated",
    )


def _run(arguments: argparse.Namespace) -> None:
    from servepipe import api

    source = merged(read_pipeline(arguments.file), arguments.overlays, arguments.images)
    for notice in api.notices(source.resource):
        print(f"warning: {notice}", file=sys.stderr)
    write_output(api.write(source.resource), arguments.output)
    if arguments.output != STANDARD:
        nodes = len(source.resource.spec.nodes)
        print(f"{arguments.output}: {source.resource.name}, {nodes} node{'s' if nodes != 1 else ''}", file=sys.stderr)
        if source.root is not None:
            print(f"In an image, the content of {source.root} belongs on PYTHONPATH.", file=sys.stderr)


def merged(source: Source, overlays: list[str], images: list[str]) -> Source:
    """The pipeline with overlay files and ``--image`` on top.

    Raises:
        ServePipeError: An overlay or image does not fit, or the result is not valid.
    """
    from servepipe import api

    resource = source.resource
    for overlay in overlays:
        with located_in(overlay):
            resource = checked(api.merge(resource, read_document(overlay)))
    if images:
        resource = checked(api.merge(resource, _images(images, list(resource.spec.nodes))))
    return Source(resource, source.label, source.root)


def _images(images: list[str], nodes: list[str]) -> dict[str, Any]:
    """The overlay that ``--image`` stands for."""
    spec: dict[str, Any] = {}
    for argument in images:
        node, equals, image = argument.rpartition("=")
        if not image or (equals and not node):
            raise ResourceError(f"--image {argument} names no {'image' if not image else 'node'}", fix="[NODE=]IMG")
        if not equals:
            spec["image"] = image
        elif node in nodes:
            spec.setdefault("nodes", {})[node] = {"image": image}
        else:
            from servepipe.graph.wire import did_you_mean

            raise ResourceError(f"--image names a node {node!r} that there is not", fix=did_you_mean(node, nodes))
    return {"spec": spec}
