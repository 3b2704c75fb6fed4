"""From a file to what can be run: the resource, copies of its code, and the files to watch.

All of it happens in a process of its own (`servepipe_operator.local.compile_child`): user code is imported freshly each
time, may print, crash or hang on to what it likes, and the process that keeps a pipeline running stays clean.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from servepipe import errors
from servepipe.errors import RunError, ServePipeError
from servepipe_operator.local.run_folder import runs_root

__all__ = ["Compiled", "compile_document", "compile_file"]

TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class Compiled:
    """A resource ready to run.

    Args:
        document: The resource as canonical YAML; every node whose sources are a project's has its ``code``.
        pipeline: Its name.
        root: The import root: where its modules were found.
        code_paths: Folder with a copy of the sources, by digest.
        files: What to watch: the file itself and every module of the nodes.
        notices: What was done that the file does not say.
    """

    document: str
    pipeline: str
    root: str
    code_paths: dict[str, str]
    files: tuple[Path, ...]
    notices: tuple[str, ...] = ()


async def compile_file(file: str, *, recompute: bool = False, copy: bool = True) -> Compiled:
    """Compile ``pipeline.py[:APP]``, or read ``pipeline.yaml``.

    Args:
        recompute: Replace the digests that a YAML file gives by those of the sources that are there now.
        copy: Keep copies of the sources; without, there are no ``code_paths``.

    Raises:
        ServePipeError: Whatever is wrong with the file, its resource or its modules.
    """
    return await _compile({"file": file, "recompute": recompute, "copy": copy})


async def compile_document(document: str, folder: str) -> Compiled:
    """Take a resource as text, its modules from ``folder``. Raises as `compile_file`."""
    return await _compile({"document": document, "folder": folder, "recompute": False, "copy": True})


async def _compile(request: dict[str, Any]) -> Compiled:
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-m",
        "servepipe_operator.local.compile_child",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        asked = json.dumps(request | {"store": str(runs_root())}).encode()
        answer, _ = await asyncio.wait_for(child.communicate(asked), TIMEOUT_S)
    except TimeoutError:
        raise RunError(f"Importing the pipeline took longer than {TIMEOUT_S:.0f} s") from None
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    try:
        result = json.loads(answer)
    except ValueError:
        raise RunError(f"Importing the pipeline ended this process with code {child.returncode}") from None
    if "error" in result:
        error = result["error"]
        kind = getattr(errors, error.pop("type"), ServePipeError)
        raise ServePipeError(**error) if kind is errors.NodeError else kind(**error)
    return Compiled(
        document=result["document"],
        pipeline=result["pipeline"],
        root=result["root"],
        code_paths=result["code_paths"],
        files=tuple(Path(file) for file in result["files"]),
        notices=tuple(result["notices"]),
    )
