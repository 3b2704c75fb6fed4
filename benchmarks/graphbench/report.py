"""What is left of a run: raw rounds as JSON, the tables as Markdown, the pictures."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from graphbench.cases import CASES
from graphbench.contestants import is_ours
from graphbench.figures import Sample
from graphbench.schedule import Pace, Selection
from graphbench.tables import case_tables, goals_table, machine_lines
from graphbench.verdicts import Outcome

__all__ = ["UnreadableError", "exit_code", "failure_lines", "load_run", "markdown", "verdict_line", "write_json"]


def write_json(
    file: Path, machine: dict[str, Any], pace: Pace, samples: Sequence[Sample], outcomes: Sequence[Outcome]
) -> None:
    """Everything that was measured, whole or not at all."""
    content = {
        "benchmark": "graphs",
        "machine": machine,
        "pace": asdict(pace),
        "goals": [
            {
                "title": one.goal.title,
                "case": one.goal.case,
                "load": one.goal.load,
                "median": one.spread.median if one.spread else None,
                "quartiles": [one.spread.low, one.spread.high] if one.spread else None,
                "at_least": one.goal.at_least,
                "aim": one.goal.aim,
                "better": one.goal.better,
                "verdict": one.verdict,
                "why": one.why,
            }
            for one in outcomes
        ],
        "samples": [sample.to_json() for sample in samples],
    }
    coming = file.with_suffix(".tmp")
    coming.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    coming.replace(file)


class UnreadableError(Exception):
    """A file is not the results of a run; the message says which."""


def load_run(file: Path) -> tuple[dict[str, Any], Pace, list[Sample]]:
    """The machine, the pace and the samples of an earlier run. Raises `OSError` and `UnreadableError`."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        # Earlier runs had as many rounds everywhere.
        pace = {"other_rounds": content["pace"]["rounds"]} | content["pace"]
        return content["machine"], Pace(**pace), [Sample(**one) for one in content["samples"]]
    except (ValueError, KeyError, TypeError) as error:
        raise UnreadableError(f"{file} is not the JSON of an earlier run: {error!r}") from error


def markdown(
    machine: dict[str, Any],
    selection: Selection,
    pace: Pace,
    samples: Sequence[Sample],
    outcomes: Sequence[Outcome],
    plots: dict[str, str],
) -> str:
    """The page; ``plots`` are the names of the pictures' files, by case."""
    how = f"{_rounds_of(pace)}, {pace.seconds:g} s or more each after {pace.warmup_s:g} s of warm-up"
    parts = [
        "# Graphs of models: servepipe and others",
        *_list(machine_lines(machine, samples)),
        f"{how}. {_reading()}",
    ]
    parts += ["## Goals", verdict_line(outcomes, pace), *filter(None, [goals_table(outcomes)])]
    if failures := failure_lines(samples):
        parts += ["## Failures", *_list(failures)]
    for case in selection.cases:
        if any(sample.case == case.name for sample in samples):
            parts.append(case_tables(CASES[case.name], samples))
            if case.name in plots:
                parts.append(f"![{case.title}]({plots[case.name]})")
    return "\n\n".join(parts) + "\n"


def _list(lines: Sequence[str]) -> list[str]:
    return ["\n".join(f"- {line}" for line in lines)]


def _rounds_of(pace: Pace) -> str:
    rounds = "1 round" if pace.rounds == 1 else f"{pace.rounds} rounds in turn"
    if pace.other_rounds != pace.rounds:
        rounds += f" where a goal compares, {pace.other_rounds} elsewhere"
    return rounds


def _reading() -> str:
    return "Figures are medians with quartiles; ratios are made in each round and are medians too."


def verdict_line(outcomes: Sequence[Outcome], pace: Pace) -> str:
    """How it came out, in a sentence."""
    run = [one for one in outcomes if one.verdict != "not run"]
    missed = [one for one in run if one.verdict == "MISSED"]
    unjudged = [one for one in run if one.verdict == "not judged"]
    if not run:
        return "No goal was measured."
    if missed or unjudged:
        words = ", ".join(
            f"{len(found)} of {len(run)} goals {how}"
            for found, how in ((missed, "missed"), (unjudged, "not judged"))
            if found
        )
    else:
        words = f"All {len(run)} goals that were measured reached"
    if not pace.verdicts:
        words += ": of a run that is too short for a verdict and does not fail"
    if left := len(outcomes) - len(run):
        words += f"; {left} not measured"
    return words + "."


def failure_lines(samples: Sequence[Sample]) -> list[str]:
    """Who did not start, or answered wrongly or not at all, where, how often, and how that showed first."""
    asked = Counter((one.case, one.contestant) for one in samples)
    failed = Counter((one.case, one.contestant) for one in samples if one.problem)
    first = {(one.case, one.contestant): one for one in reversed(samples) if one.problem}
    return [
        f"FAILED {times} of {asked[place]} times: {place[0]}, {place[1]}; "
        f"at {first[place].load!r} in round {first[place].round}: {first[place].problem.splitlines()[0]}"
        for place, times in failed.items()
    ]


def exit_code(outcomes: Sequence[Outcome], samples: Sequence[Sample], pace: Pace) -> int:
    """0 when all is well; 1 for a goal that was missed or could not be judged, where goals count, and always for wrong
    or missing answers of servepipe's own. Those of others count by the goals that they leave without a verdict.
    """
    if any(sample.problem for sample in samples if is_ours(sample.contestant)):
        return 1
    if all(sample.problem for sample in samples):
        return 1  # nothing was measured
    return 1 if pace.verdicts and any(one.verdict in ("MISSED", "not judged") for one in outcomes) else 0
