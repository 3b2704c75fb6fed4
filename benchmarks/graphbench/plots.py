"""The results of one case as an SVG: bars with their quartiles for each load."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from graphbench.cases import Case
from graphbench.contestants import CONTESTANTS
from graphbench.figures import Sample, Spread, by_round, spread

__all__ = ["Panel", "draw", "panels_of"]

# The same results give the same file, and text stays text.
mpl.rcParams["svg.hashsalt"] = "servepipe"
mpl.rcParams["svg.fonttype"] = "none"

#: Ours in blues, Ray Serve in oranges and reds, others in greys: told apart by lightness too.
COLORS = {
    "separate": "#0b3c6f",
    "auto": "#2f7fc1",
    "inline": "#8fc3ea",
    "interpreter": "#2f7fc1",
    "serve-tuned": "#c8500a",
    "serve-by-value": "#e98a4b",
    "serve-default": "#7d1d0c",
    "one-deployment": "#f3bd94",
    "http": "#4c7a34",
    "floor": "#555555",
    "noop": "#8a8a8a",
    "by-hand": "#8a8a8a",
}

#: Of a bar, where 1 is the distance between two loads.
WIDEST = 0.25
#: How many characters of loads fit below a picture without being turned.
ONE_LINE = 40


class Panel:
    """One figure of one case: by load and contestant.

    Args:
        heading: Names the figure and its unit.
        below: What the loads are told by.
    """

    def __init__(self, heading: str, below: str, loads: Sequence[str], bars: dict[str, dict[str, Spread]]) -> None:
        self.heading, self.below, self.loads, self.bars = heading, below, loads, bars


def panels_of(case: Case, samples: Sequence[Sample]) -> list[Panel]:
    """What is worth a picture: throughput and p50; of cases without load, what they measured first."""
    if case.kind == "load":
        label = next((one.requests[0].label and "fast" for one in case.loads), "")
        p50 = f"p50 {label}".strip()
        chosen = [("throughput", "requests per second"), (p50, f"p50 of {label} calls, ms" if label else "p50, ms")]
    elif case.kind == "startup":
        chosen = [("running_s", "seconds to RUNNING"), ("replica_mb", "a replica's memory (PSS), MB")]
    else:
        chosen = [("us_per_step", "us per step"), ("us_per_call", "us per call")]
    below = "" if case.kind != "load" else "load, connections" if ", " in case.loads[0].name else "connections"
    found = []
    for figure, heading in chosen:
        loads = [load.name for load in case.loads]
        bars = {
            name: {
                load: measured
                for load in loads
                if (measured := spread(by_round(samples, case.name, load, name, figure).values()))
            }
            for name in case.contestants
            if name != "client"  # stands in the table; beside it all others would look alike
        }
        bars = {name: by_load for name, by_load in bars.items() if by_load}
        shown = [load for load in loads if any(load in by_load for by_load in bars.values())]
        if bars:
            found.append(Panel(heading, below, shown, bars))
    return found


def draw(case: Case, samples: Sequence[Sample], file: Path) -> bool:
    """Write the picture; False when there is nothing to show."""
    panels = panels_of(case, samples)
    if not panels:
        return False
    figure = Figure(figsize=(5.4 * len(panels) + 2.6, 4.2), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for ax, panel in zip(axes, panels, strict=True):
        _bars(ax, panel)
    figure.suptitle(case.title, fontsize=12, x=0.01, ha="left")
    handles = {name: handle for ax in axes for handle, name in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside right center", frameon=False, fontsize=9)
    figure.savefig(file, format="svg", metadata={"Date": None})
    return True


def _bars(ax: Any, panel: Panel) -> None:
    width = min(0.86 / len(panel.bars), WIDEST)
    for number, (name, by_load) in enumerate(panel.bars.items()):
        shown = [load for load in panel.loads if load in by_load]
        places = [panel.loads.index(load) + width * (number + 0.5 - len(panel.bars) / 2) for load in shown]
        medians = [by_load[load].median for load in shown]
        low, high = (
            [abs(getattr(by_load[load], edge) - by_load[load].median) for load in shown] for edge in ("low", "high")
        )
        title = CONTESTANTS[name].title if name in CONTESTANTS else name
        ax.bar(places, medians, width * 0.94, color=COLORS.get(name, "#999999"), label=title)
        if any(low + high):
            ax.errorbar(places, medians, yerr=(low, high), fmt="none", ecolor="#202020", elinewidth=0.9, capsize=1.5)
    # Slanted names end below their bars: with their middle there, they would seem to belong to others.
    slanted: dict[str, Any] = {"rotation": 30, "rotation_mode": "anchor", "ha": "right"}
    ax.set_xticks(range(len(panel.loads)), panel.loads, **(slanted if sum(map(len, panel.loads)) > ONE_LINE else {}))
    ax.set_xlim(-0.6, len(panel.loads) - 0.4)
    heading = panel.heading
    # Ways that differ by a hundred times are to be seen beside each other.
    medians = [measured.median for by_load in panel.bars.values() for measured in by_load.values()]
    if min(medians) > 0 and max(medians) / min(medians) > 20:
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        heading += " (log scale)"
    ax.set_title(heading, fontsize=10)
    ax.set_xlabel(panel.below, fontsize=9)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color="#dddddd", linewidth=0.6)
    ax.set_axisbelow(True)
