"""Argo CD's health check of a ServePipeline, run as Argo CD runs it: Lua 5.1 with few of its libraries."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from lupa import lua51

__all__ = ["SCRIPT", "Health", "health"]

SCRIPT = Path(__file__).parents[2] / "docs" / "gitops" / "argocd-health.lua"
Health = Literal["Healthy", "Progressing", "Degraded", "Suspended"]

#: Argo CD opens base, package, table, and an os with the time only, unless `useOpenLibs` is set.
_CLOSED = ("string", "io", "os", "math", "debug", "coroutine", "python")


def health(live: dict[str, Any]) -> tuple[Health, str]:
    """The status, and what is told beside it."""
    lua = lua51.LuaRuntime(unpack_returned_tuples=True)
    script = SCRIPT.read_text()
    for name in _CLOSED:
        lua.execute(f"{name} = nil")
    lua.globals().obj = lua.table_from(live, recursive=True)
    answer = lua.execute(script)
    return answer.status, answer.message
