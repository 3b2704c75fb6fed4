"""The figures of one run as a file."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

__all__ = ["save"]


def save(file: Path, benchmark: str, **figures: Any) -> None:
    """Write the figures of a benchmark, and what Python they are of, as JSON."""
    told = {"benchmark": benchmark, "python": platform.python_version(), **figures}
    file.write_text(json.dumps(told, indent=2) + "\n")
