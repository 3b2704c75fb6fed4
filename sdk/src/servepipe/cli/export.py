"""``servepipe export``: files for people who run Ray Serve or KubeRay without the operator."""

from __future__ import annotations

import argparse
import sys
import textwrap
from typing import TYPE_CHECKING, Any

from servepipe import __ray_version__, __version__
from servepipe.cli.compile import add_overrides, merged
from servepipe.cli.files import Source, add_output, read_pipeline, write_output
from servepipe.errors import ResourceError

if TYPE_CHECKING:
    from servepipe.cli import Commands
    from servepipe.cli.serve_export import Exported

__all__ = ["register"]

_SERVE = """\
Write the pipeline as a configuration of Ray Serve. It answers the same as under the operator; what the operator adds
(upgrades of single models with a way back, repair of drift) it does not have.

  servepipe export serve pipeline.py -o serve.yaml && serve deploy serve.yaml
"""

_RAYSERVICE = """\
Write the pipeline as a RayService of KubeRay: the same configuration of Ray Serve, and a cluster for it.

  servepipe export rayservice pipeline.py --image acme/diamond:1.4 | kubectl apply -f -
"""

_CODE = """\
The replicas import the pipeline's modules. Either they find them (in the image, or on PYTHONPATH where Ray was started)
or --working-dir names where Ray gets them: a zip that has them at its top, at an https:, s3: or gs: address.
"""


def register(commands: Commands) -> None:
    parser = commands.add_parser("export", help="write files for Ray Serve or KubeRay without the operator")
    parser.set_defaults(run=None, parser=parser)
    targets = parser.add_subparsers(title="targets", metavar="TARGET", required=True)
    for name, what, description, run in (
        ("serve", "a file for `serve deploy`", _SERVE, _serve),
        ("rayservice", "a RayService for KubeRay", _RAYSERVICE, _rayservice),
    ):
        target = targets.add_parser(name, help=what, description=f"{description}\n{_CODE}")
        target.add_argument(
            "file", metavar="FILE", help="FILE.py[:APP], a YAML file, or - for YAML from standard input"
        )
        add_output(target)
        add_overrides(target)
        target.add_argument("--working-dir", metavar="URI", help="where Ray gets the pipeline's modules from")
        target.set_defaults(run=run)


def _serve(arguments: argparse.Namespace) -> None:
    source, exported = _export(arguments)
    lines = [
        *_requirements(source, arguments.working_dir),
        f"Run it with: serve deploy {arguments.output if arguments.output != '-' else 'FILE'}",
    ]
    write_output(_header("serve", source, lines, exported) + _yaml(exported.config), arguments.output)


def _rayservice(arguments: argparse.Namespace) -> None:
    from servepipe.cli.rayservice import ray_cluster

    source, exported = _export(arguments)
    if source.resource.spec.image is None:
        raise ResourceError(
            "a RayService needs an image", where=source.label, fix="Pass --image IMG, or set spec.image."
        )
    ray_version = source.resource.spec.ray_version or __ray_version__
    lines = [f"Of the image {source.resource.spec.image}:", *_requirements(source, arguments.working_dir)]
    text = (
        _header("rayservice", source, lines, exported)
        + _yaml({"apiVersion": "ray.io/v1", "kind": "RayService", "metadata": {"name": source.resource.name}})
        + "spec:\n  serveConfigV2: |\n"
        + textwrap.indent(_yaml(exported.config), "    ")
        + textwrap.indent(_yaml({"rayClusterConfig": ray_cluster(source.resource, ray_version)}), "  ")
    )
    write_output(text, arguments.output)


def _export(arguments: argparse.Namespace) -> tuple[Source, Exported]:
    from servepipe.cli.serve_export import export

    source = merged(read_pipeline(arguments.file), arguments.overlays, arguments.images)
    exported = export(source.resource, arguments.working_dir)
    for field in exported.left_out:
        print(f"warning: {field} is left out: the exported file has no place for it", file=sys.stderr)
    return source, exported


def _requirements(source: Source, working_dir: str | None) -> list[str]:
    modules = sorted({node.import_.partition(":")[0] for node in source.resource.spec.nodes.values()})
    lines = [
        f'Needs on every node of the Ray cluster: pip install "servepipe[runtime]=={__version__}" '
        f"(Ray {source.resource.spec.ray_version or __ray_version__})"
    ]
    if working_dir:
        return [*lines, f"Takes from {working_dir}: {', '.join(modules)}"]
    return [*lines, f"Needs on the path of Ray's workers (PYTHONPATH where Ray is started): {', '.join(modules)}"]


def _header(target: str, source: Source, lines: list[str], exported: Exported) -> str:
    left_out = [f"Left out, there is no place for it here: {field}" for field in exported.left_out]
    written = [f"Written by `servepipe export {target}` from the pipeline {source.resource.name}.", *lines, *left_out]
    return "".join(f"# {line}\n" for line in written)


def _yaml(content: dict[str, Any]) -> str:
    from servepipe.api.yaml_writer import write_yaml

    return write_yaml(content)
