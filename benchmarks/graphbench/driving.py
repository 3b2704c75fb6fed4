"""Sending the load client out: what it is to send, and what it brings back."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from graphbench.cases import Request
from graphbench.systems.base import BENCHMARKS, ROOT, output_of

__all__ = ["drive", "filled"]


def filled(request: Request) -> Request:
    """The request with its body, where that is in a file."""
    if not request.file:
        return request
    package, _, path = request.file.rpartition(":")
    folder = ROOT
    if package:
        found = importlib.util.find_spec(package)
        if found is None or found.origin is None:
            raise FileNotFoundError(f"{request.file}: there is no package {package!r}")
        folder = Path(found.origin).parent
    return replace(request, body=(folder / path).read_bytes(), file="")


async def drive(instructions: dict[str, Any], timeout_s: float) -> dict[str, Any]:
    """The client's figures; a client that fails gives a problem and no figures."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "graphbench.client"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=BENCHMARKS,
    )
    try:
        out, err = await output_of(process, timeout_s, json.dumps(instructions).encode())
    except TimeoutError:
        return {"figures": {}, "problem": f"the load client did not end within {timeout_s:.0f} s"}
    if process.returncode != 0:
        return {"figures": {}, "problem": f"the load client failed: {err.decode(errors='replace')[-2000:]}"}
    result: dict[str, Any] = json.loads(out)
    if not result["figures"] and not result["problem"]:
        result["problem"] = "no request was answered inside the measured time"
    return result
