"""The process that imports a pipeline's file and copies its sources; see `servepipe_operator.local.sources`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from servepipe import api
from servepipe.authoring.code import copy_sources, digest_of, in_library, source_files, sources
from servepipe.authoring.loader import load_app, locate
from servepipe.errors import CodeMismatchError, RunError, ServePipeError
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
        result = {"error": _parts(error)}
    except OSError as error:
        trouble = RunError(
            f"The pipeline or the copies of its sources: {error.strerror or error}",
            where=str(error.filename2 or error.filename or ""),
            fix="Make room or set the permissions right. XDG_STATE_HOME says where the copies go.",
        )
        result = {"error": _parts(trouble)}
    answers.write(json.dumps(result))
    answers.flush()
    os._exit(0)  # threads or exit handlers of user code must not hold the answer up


def _parts(error: ServePipeError) -> dict[str, str]:
    kind, what = type(error).__name__, error.what
    if isinstance(error, api.InvalidResourceError):
        others = [str(problem) for problem in error.problems[1:]]
        kind, what = "ResourceError", "\n".join([what, *others])
    return {"type": kind, "what": what, "where": error.where, "fix": error.fix}


def _compile(request: dict[str, Any]) -> dict[str, Any]:
    if "document" in request:
        given, root, files = api.load_yaml(request["document"]), Path(request["folder"] or os.curdir).absolute(), []
    else:
        given, root, file = _read(request["file"])
        files = [str(file)]
    sys.path.insert(0, str(root))
    checked = api.validate(given)
    if problems := api.problems(checked):
        raise api.InvalidResourceError(problems)
    resource = api.load_yaml(api.write(checked))
    notices: list[str] = []
    store = Path(request["store"]) / resource["metadata"]["name"] / "code"
    code_paths: dict[str, str] = {}
    for place, owner, field, module in _modules(resource):
        found = source_files(module, root)
        if all(in_library(path) for path in found.values()) or module.partition(".")[0] == OWN_PACKAGE:
            continue
        files.extend(str(path) for path in found.values())
        if request["copy"]:
            store.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            digest, folder = copy_sources(module, root, store)
            code_paths[digest] = str(folder)
        else:
            digest = digest_of(sources(module, root))
        declared = owner.get(field)
        if declared not in (None, digest):
            if not request["recompute"]:
                raise CodeMismatchError(
                    f"The sources of {module!r} are not those that the file was compiled from: it says {declared}, "
                    f"they have {digest}",
                    where=f"{place}.{field}",
                    fix="Compile again, or add --watch to run the sources as they are.",
                )
            notices.append(f"{place}: {module} has changed since the file was compiled, running it as it is now")
        owner[field] = digest
    return {
        "document": api.write(api.validate(resource)),
        "pipeline": resource["metadata"]["name"],
        "root": str(root),
        "code_paths": code_paths,
        "files": sorted(set(files)),
        "notices": notices,
    }


def _read(argument: str) -> tuple[Any, Path, Path]:
    """The resource, its import root and its file, of ``FILE[:APP]``."""
    path, _, attribute = argument.partition(":")
    file = Path(path).absolute()
    if file.suffix == ".py":
        return load_app(file, attribute or None).to_dict(), locate(file)[0], file
    return api.load_yaml(file), file.parent, file


def _modules(resource: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], str, str]]:
    """Every module that the resource names: where, the object that holds its digest, under which key, and its name."""
    for name, node in resource["spec"]["nodes"].items():
        yield f"spec.nodes.{name}", node, "code", node["import"].partition(":")[0]
    graph = resource["spec"]["graph"]
    for field, kind in (("input", "preprocessor"), ("response", "postprocessor")):
        hook = graph.get(field) or {}
        if kind in hook:
            yield f"spec.graph.{field}", hook, "code", hook[kind].partition(":")[0]


if __name__ == "__main__":
    main()
