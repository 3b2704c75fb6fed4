"""The process that imports a pipeline's file and copies its sources; see `servepipe_operator.local.sources`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from servepipe import api
from servepipe.authoring.code import copy_sources, in_library, source_files
from servepipe.authoring.loader import load_app, locate
from servepipe.errors import CodeMismatchError, ResourceError, ServePipeError
from servepipe_operator.adapters.processes import die_with_parent

__all__ = ["main"]

OWN_PACKAGE = "servepipe"


def main() -> None:
    """Answer the one request on standard input on standard output; what user code prints goes to standard error."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    die_with_parent()
    request = json.loads(sys.stdin.read())
    try:
        result = _compile(request)
    except ServePipeError as error:
        kind = type(error).__name__
        result = {"error": {"type": kind, "what": error.what, "where": error.where, "fix": error.fix}}
    answers.write(json.dumps(result))
    answers.flush()
    os._exit(0)  # threads or exit handlers of user code must not hold the answer up


def _compile(request: dict[str, Any]) -> dict[str, Any]:
    if "document" in request:
        text, root, files = request["document"], Path(request["folder"] or os.curdir).absolute(), []
    else:
        text, root, file = _read(request["file"])
        files = [str(file)]
    sys.path.insert(0, str(root))
    resource = yaml.safe_load(api.write(api.read(text)))
    notices: list[str] = []
    store = Path(request["store"]) / resource["metadata"]["name"] / "code"
    code_paths: dict[str, str] = {}
    for place, owner, field, module in _modules(resource):
        found = source_files(module, root)
        if all(in_library(path) for path in found.values()) or module.partition(".")[0] == OWN_PACKAGE:
            continue
        files.extend(str(path) for path in found.values())
        store.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        digest, folder = copy_sources(module, root, store)
        given = owner.get(field)
        if given not in (None, digest):
            if not request["recompute"]:
                raise CodeMismatchError(
                    f"The sources of {module!r} are not those that the file was compiled from: it says {given}, they "
                    f"have {digest}",
                    where=f"{place}.{field}",
                    fix="Compile again, or add --watch to run the sources as they are.",
                )
            notices.append(f"{place}: {module} has changed since the file was compiled, running it as it is now")
        owner[field] = digest
        code_paths[digest] = str(folder)
    return {
        "document": api.write(api.read(yaml.safe_dump(resource, sort_keys=False))),
        "pipeline": resource["metadata"]["name"],
        "root": str(root),
        "code_paths": code_paths,
        "files": sorted(set(files)),
        "notices": notices,
    }


def _read(argument: str) -> tuple[str, Path, Path]:
    """The resource's text, its import root and its file, of ``FILE[:APP]``."""
    path, _, attribute = argument.partition(":")
    file = Path(path).absolute()
    if file.suffix == ".py":
        app = load_app(file, attribute or None)
        return app.to_yaml(), locate(file)[0], file
    try:
        return file.read_text(encoding="utf-8"), file.parent, file
    except (OSError, UnicodeDecodeError) as error:
        raise ResourceError(f"The file cannot be read: {error}", where=path) from error


def _modules(resource: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], str, str]]:
    """Every module that the resource names: where, the object that holds its digest, under which key, and its name."""
    for name, node in resource["spec"]["nodes"].items():
        yield f"spec.nodes.{name}", node, "code", node["import"].partition(":")[0]


if __name__ == "__main__":
    main()
