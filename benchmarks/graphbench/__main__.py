"""The command: what to measure, and where the results go.

python -m graphbench                                  all of it (an hour and a half); fails when a goal is missed
python -m graphbench --quick                          the most important figures, below five minutes
python -m graphbench --goals                          what the goals need (a quarter of an hour); fails as the first
python -m graphbench --only diamond/32/separate+serve-tuned --rounds 9
python -m graphbench --without triage
python -m graphbench --again benchmarks/results/graphs.json     the tables and pictures of an earlier run
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from graphbench import report
from graphbench.cases import CASES
from graphbench.figures import Sample
from graphbench.goals import what_goals_need
from graphbench.needs import MissingError, check
from graphbench.schedule import FULL, QUICK, Pace, Selection, SelectionError, seconds_of, select
from graphbench.tables import goals_table
from graphbench.verdicts import judge_all

ROOT = Path(__file__).resolve().parents[2]
#: A gateway in front of eight models has a thousand connections at the largest load.
FILES = 16384
RESULTS = ROOT / "benchmarks" / "results"


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    pace = QUICK if options.quick else FULL
    pace = replace(
        pace,
        rounds=options.rounds or pace.rounds,
        other_rounds=options.rounds or pace.other_rounds,
        seconds=options.seconds or pace.seconds,
        freeze=not options.no_freeze,
    )
    try:
        if options.again:
            machine, pace, samples = report.load_run(options.again)
            measured = {sample.case for sample in samples}
            selection = Selection(tuple(case for case in CASES.values() if case.name in measured))
        else:
            only = [*options.only, *(what_goals_need() if options.goals else ())]
            selection = select(only, quick=options.quick, without=options.without)
            check(selection.cases)
        options.out.mkdir(parents=True, exist_ok=True)
    except (SelectionError, MissingError, report.UnreadableError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    partly = options.only or options.without
    name = (
        "graphs-quick" if options.quick else "graphs-only" if partly else "graphs-goals" if options.goals else "graphs"
    )
    if options.again:
        name = options.again.stem
    else:
        from graphbench.machine import allow_files, describe

        allow_files(FILES)
        machine, samples = describe(ROOT), []
        minutes = seconds_of(selection, pace) / 60
        _say(f"{machine['cpu']}, {machine['cores']} cores; about {minutes:.0f} minutes")
        results = options.out / f"{name}.json"

        def keep(found: list[Sample]) -> None:
            report.write_json(results, machine, pace, found, judge_all(found, pace.enough))

        from graphbench.runner import run_all

        with _without_other_rays(), contextlib.suppress(asyncio.CancelledError):
            samples = asyncio.run(run_all(selection, pace, _say, keep))
        if not samples:
            return 130
    return _conclude(machine, selection, pace, samples, options.out, name)


def _conclude(
    machine: dict[str, object], selection: Selection, pace: Pace, samples: list[Sample], out: Path, name: str
) -> int:
    outcomes = judge_all(samples, pace.enough)
    from graphbench.plots import draw

    plots = {}
    for case in selection.cases:
        picture = out / f"{name}-{case.name}.svg"
        if draw(CASES[case.name], samples, picture):
            plots[case.name] = picture.name
    page = out / f"{name}.md"
    page.write_text(report.markdown(machine, selection, pace, samples, outcomes, plots), encoding="utf-8")
    lines = [report.verdict_line(outcomes, pace), *report.failure_lines(samples), f"All figures: {page}"]
    print("", goals_table(outcomes), "", *lines, sep="\n", flush=True)
    return report.exit_code(outcomes, samples, pace)


@contextlib.contextmanager
def _without_other_rays() -> Iterator[None]:
    """Variables that tune some other Ray would tune the contestants, of which one is to be Ray Serve as it comes."""
    before = dict(os.environ)
    for name in [name for name in before if name.startswith("RAY_")]:
        _say(f"ignored: {name}={os.environ.pop(name)}")
    # Changes nothing but how long Serve waits for a HAProxy, which may be stopped meanwhile: see `freezing`.
    os.environ["RAY_SERVE_HAPROXY_STARTUP_TIMEOUT_S"] = "600"
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="graphbench",
        description="What a graph of models costs on servepipe, beside the same graph written by hand in other ways.",
        epilog="cases: " + ", ".join(CASES),
    )
    parser.add_argument("--quick", action="store_true", help="few cases and rounds; goals only indicate")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="CASE[/LOAD[/CONTESTANT+...]]",
        help="just that; may be repeated. Goals are judged as far as what they compare was measured",
    )
    parser.add_argument("--goals", action="store_true", help="just what the goals compare")
    parser.add_argument("--without", action="append", default=[], metavar="CASE", help="leave it out; may be repeated")
    parser.add_argument(
        "--rounds",
        type=_positive,
        metavar="N",
        help=f"of every load; default {FULL.rounds} where a goal compares and {FULL.other_rounds} elsewhere, "
        f"quick {QUICK.rounds}",
    )
    parser.add_argument("--seconds", type=float, metavar="S", help="measured in each round")
    parser.add_argument("--no-freeze", action="store_true", help="let those that wait for their turn go on meanwhile")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FOLDER", help="default benchmarks/results")
    parser.add_argument("--again", type=Path, metavar="JSON", help="measure nothing, report an earlier run again")
    return parser


def _positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, not {value}")
    return value


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
