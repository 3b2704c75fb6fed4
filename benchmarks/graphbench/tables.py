"""The results as tables in Markdown, which are readable in a terminal too: pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from graphbench.cases import Case, Load
from graphbench.contestants import CONTESTANTS
from graphbench.figures import Sample, Spread, by_round, ratios, spread
from graphbench.verdicts import Outcome

__all__ = ["case_tables", "goals_table", "machine_lines", "table", "told"]

#: Beside whom the others are shown.
BESIDE = "serve-tuned"
#: What others may use of the machine: its own services, and this program between two loads.
QUIET_CORES = 0.15


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose columns are aligned: the first to the left, the others to the right."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        return "| " + " | ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]) + " |"

    rule = "| " + " | ".join(["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]) + " |"
    return "\n".join([line(head), rule, *(line(row) for row in rows)])


def number(value: float) -> str:
    """Three figures that count, without powers of ten."""
    size = abs(value)
    digits = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3
    return f"{value:,.{digits}f}"


def told(found: Spread | None, unit: str = "") -> str:
    """``6.10 (5.90 to 6.40)``: the median and the quartiles around it, of one value just that."""
    if found is None:
        return "-"
    if found.count == 1:
        return f"{number(found.median)}{unit}"
    return f"{number(found.median)}{unit} ({number(found.low)} to {number(found.high)})"


def goals_table(outcomes: Sequence[Outcome]) -> str:
    """Each goal that was measured, and below why one was missed that was not just slower, or could not be judged; ""
    when there is none.
    """
    measured = [one for one in outcomes if one.verdict != "not run"]
    if not measured:
        return ""
    rows = []
    for outcome in measured:
        goal = outcome.goal
        unit = goal.unit if goal.unit == "x" else f" {goal.unit}"
        sign = ">=" if goal.better == "higher" else "<="
        limits = [f"{sign} {limit:g}{unit}" for limit in (goal.at_least, goal.aim)]
        rows.append([f"{goal.case}: {goal.title}", told(outcome.spread, unit), *limits, outcome.told])
    lines = [table(["goal", "median (quartiles)", "at least", "aim", ""], rows)]
    lines += [f"\n- {o.goal.case}, {o.goal.title}: {o.why.splitlines()[0]}" for o in measured if o.why]
    return "".join(lines)


def case_tables(case: Case, samples: Sequence[Sample]) -> str:
    """One table for each load."""
    own = [sample for sample in samples if sample.case == case.name]
    parts = [f"## {case.title}"]
    for load in case.loads:
        figures = _figures(own, load)
        if not figures:
            continue
        parts += [f"### {load.title if case.kind == 'load' else load.name}", _load_table(case, load, figures, own)]
        if failed := Counter(_title(s.contestant) for s in own if s.load == load.name and s.problem):
            rounds = _rounds(own, load)
            told = ", ".join(f"{name} (in {times} of {len(rounds)})" for name, times in failed.items())
            parts.append(f"Failed here: {told}.")
    return "\n\n".join(parts)


def _figures(samples: Sequence[Sample], load: Load) -> list[str]:
    """The names of what was measured, in the order in which it was first seen."""
    return list(dict.fromkeys(name for s in samples if s.load == load.name for name in s.figures))


def _rounds(samples: Sequence[Sample], load: Load) -> set[int]:
    return {s.round for s in samples if s.load == load.name}


def _load_table(case: Case, load: Load, figures: Sequence[str], samples: Sequence[Sample]) -> str:
    throughput = "throughput" in figures
    rounds = len(_rounds(samples, load))
    head = ["1 round" if rounds == 1 else f"{rounds} rounds", *(_HEADS.get(figure, figure) for figure in figures)]
    if throughput:
        head += ["x tuned, throughput", "x tuned, p50", "CPU ms", "of the client"]
    rows = []
    for name in case.contestants:
        if not any(s.load == load.name and s.contestant == name for s in samples):
            continue
        row = [_title(name)]
        row += [told(spread(by_round(samples, case.name, load.name, name, figure).values())) for figure in figures]
        if throughput:
            row += [_beside(case, load, name, figure, samples) for figure in ("throughput", "p50")]
            row += [_detail(samples, load, name, f"{who}_cpu_ms_per_request") for who in ("system", "client")]
        rows.append(row)
    return table(head, rows)


_HEADS = {
    "throughput": "requests/s",
    "p50": "p50 ms",
    "p99": "p99 ms",
    "us_per_step": "us per step",
    "us_per_call": "us per call",
    "running_s": "s to RUNNING",
    "from_ray_s": "s from a Ray that is up",
    "ray_s": "s to that Ray",
    "cpu_s": "CPU s",
    "replica_mb": "replica, PSS MB",
    "replica_rss_mb": "RSS MB",
    "replica_uss_mb": "USS MB",
}


def _title(name: str) -> str:
    return CONTESTANTS[name].title if name in CONTESTANTS else name


def _beside(case: Case, load: Load, name: str, figure: str, samples: Sequence[Sample]) -> str:
    ours, theirs = (by_round(samples, case.name, load.name, one, figure) for one in (name, BESIDE))
    found = spread(ratios(ours, [theirs], better="higher").values())
    return "-" if found is None or name == BESIDE else number(found.median)


def _detail(samples: Sequence[Sample], load: Load, contestant: str, key: str) -> str:
    values = [s.details[key] for s in samples if (s.load, s.contestant) == (load.name, contestant) and key in s.details]
    found = spread(values)
    return "-" if found is None else number(found.median)


def machine_lines(machine: dict[str, Any], samples: Sequence[Sample]) -> list[str]:
    """On what it was measured, and how quiet it was there."""
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    changed = " with changes" if machine["changed"] else ""
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB; {machine['system']}",
        f"Python {machine['python']}, {packages}",
        f"commit {machine['commit'] or 'unknown'}{changed}, {machine['began']}",
    ]
    for what, key in (("by others", "foreign_cores"), ("by what waited for its turn", "waiting_cores")):
        values = [float(s.details[key]) for s in samples if key in s.details]
        if found := spread(values):
            loud = key == "foreign_cores" and found.median > QUIET_CORES
            warning = ": the machine was NOT QUIET, trust no figure" if loud else ""
            lines.append(f"Cores used meanwhile {what}: {found.median:.2f}, at most {max(values):.2f}{warning}")
    return lines
