"""Walks over the frames of one request: the root's and those of the items of maps."""

from __future__ import annotations

from collections.abc import Iterator

from servepipe.graph.cells import RUNNING, Cell, MapCell
from servepipe.graph.program import Frame

__all__ = ["forget", "related", "running_calls"]


def related(one: Frame, other: Frame) -> bool:
    """Whether one of the frames is the other or lies inside it."""
    return _inside(one, other) or _inside(other, one)


def running_calls(root: Frame) -> Iterator[Cell]:
    """The calls under way."""
    frames = [root]
    for frame in frames:  # grows while it is read
        for cell in frame.cells:
            if cell is not None and cell.phase == RUNNING:
                yield cell
            if isinstance(cell, MapCell):
                frames.extend(cell.frames or ())


def forget(root: Frame) -> None:
    """Let go of what the steps returned. Cells and frames refer to each other: large values would wait for the GC."""
    frames = [root]
    for frame in frames:  # grows while it is read
        for cell in frame.cells:
            if type(cell) is MapCell:
                frames += cell.frames or ()
        frame.cells.clear()


def _inside(frame: Frame | None, outer: Frame) -> bool:
    while frame is not None:
        if frame is outer:
            return True
        frame = frame.parent
    return False
