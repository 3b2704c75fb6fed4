"""Points in time as they stand in status and history: RFC 3339, UTC, whole seconds."""

from __future__ import annotations

from datetime import UTC, datetime

__all__ = ["seconds", "timestamp"]


def timestamp(now: float) -> str:
    return datetime.fromtimestamp(int(now), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def seconds(text: object) -> float | None:
    """Seconds since the epoch, or None for what is no timestamp (status may have been edited by hand)."""
    if not isinstance(text, str):
        return None
    try:
        return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp()
    except ValueError:
        return None
