"""Tables, pictures and the files of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from graphbench.cases import CASES
from graphbench.figures import Sample, Spread
from graphbench.goals import GOALS
from graphbench.plots import draw, panels_of
from graphbench.report import load_run, markdown, write_json
from graphbench.schedule import FULL, Selection
from graphbench.tables import case_tables, goals_table, machine_lines, number, table, told
from graphbench.verdicts import judge_all

DIAMOND = CASES["diamond"]
MACHINE: dict[str, Any] = {
    "cpu": "A CPU",
    "cores": 2,
    "memory_gib": 24.0,
    "system": "Linux",
    "python": "3.11.7",
    "packages": {"ray": "2.60.0"},
    "commit": "abc",
    "changed": True,
    "began": "today",
}


def round_of(contestant: str, number: int, throughput: float, load: str = "32", problem: str = "") -> Sample:
    figures = {} if problem else {"throughput": throughput, "p50": 1000 / throughput, "p99": 2000 / throughput}
    details = {"foreign_cores": 0.05, "waiting_cores": 0.02, "system_cpu_ms_per_request": 0.5}
    return Sample("diamond", load, contestant, number, figures, problem, details)


SAMPLES = [
    *(round_of("separate", number, 600 + 10 * number) for number in range(1, 6)),
    *(round_of("serve-tuned", number, 100) for number in range(1, 6)),
    round_of("http", 1, 1, problem="HTTP 500: down\nand more"),
]


def test_columns_are_aligned() -> None:
    lines = table(["", "a"], [["x", "1"], ["long name", "1,000"]]).splitlines()
    assert lines == [
        "|           |     a |",
        "| --------- | ----: |",
        "| x         |     1 |",
        "| long name | 1,000 |",
    ]


@pytest.mark.parametrize(
    ("value", "shown"), [(12345.6, "12,346"), (99.96, "100.0"), (12.34, "12.3"), (1.234, "1.23"), (0.2344, "0.234")]
)
def test_numbers_have_three_figures_that_count(value: float, shown: str) -> None:
    assert number(value) == shown


def test_a_spread_is_told_with_its_quartiles() -> None:
    assert told(Spread(6.1, 5.9, 6.4, 5), "x") == "6.10x (5.90 to 6.40)"
    assert told(Spread(6.1, 6.1, 6.1, 1), "x") == "6.10x"
    assert told(None) == "-"


def test_the_table_of_a_case_has_figures_ratios_and_failures() -> None:
    text = case_tables(DIAMOND, SAMPLES)
    row = next(line for line in text.splitlines() if line.startswith("| servepipe, all separate"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1] == "630 (620 to 640)"
    assert cells[4] == "6.30"
    assert text.splitlines()[4].startswith("| 5 rounds ")
    assert "Failed here: uvicorn and a gateway (in 1 of 5)." in text
    assert "### 32 connections" in text
    assert "### 8 connections" not in text, "nobody measured that"


def test_the_table_of_goals_says_what_was_missed_and_why() -> None:
    failed = [*SAMPLES, round_of("separate", 6, 1, problem="HTTP 503: busy")]
    text = goals_table(judge_all(failed, [GOALS[0]]))
    assert "MISSED" in text
    assert "round 6: HTTP 503: busy" in text
    assert ">= 6x" in text


def test_a_machine_that_was_not_quiet_is_told() -> None:
    assert not any("NOT QUIET" in line for line in machine_lines(MACHINE, SAMPLES))
    busy = [Sample("diamond", "32", "separate", 1, details={"foreign_cores": 0.6, "waiting_cores": 0})]
    assert any("NOT QUIET" in line for line in machine_lines(MACHINE, busy))
    assert any("commit abc with changes" in line for line in machine_lines(MACHINE, []))


def test_a_page_has_goals_tables_and_pictures() -> None:
    page = markdown(MACHINE, Selection((DIAMOND,)), FULL, SAMPLES, judge_all(SAMPLES), {"diamond": "d.svg"})
    assert "](d.svg)" in page
    assert page.index("## Goals") < page.index("## Failures") < page.index(f"## {DIAMOND.title}")
    assert "- FAILED 1 of 1 times: diamond, http; at '32' in round 1: HTTP 500: down\n" in page
    assert "5 rounds in turn where a goal compares, 3 elsewhere, 2 s or more each" in page
    assert "not run" not in page
    assert "not judged: 0 of 1 round |" in page


def test_what_was_measured_comes_back_from_its_file(tmp_path: Path) -> None:
    file = tmp_path / "graphs.json"
    outcomes = judge_all(SAMPLES)
    write_json(file, MACHINE, FULL, SAMPLES, outcomes)
    machine, pace, samples = load_run(file)
    assert (machine, pace, samples) == (MACHINE, FULL, SAMPLES)
    assert judge_all(samples) == outcomes
    content = json.loads(file.read_text())
    assert content["goals"][0]["median"] == pytest.approx(6.3)
    assert [path.name for path in tmp_path.iterdir()] == ["graphs.json"], "no half-written file stays"


def test_an_earlier_run_had_as_many_rounds_everywhere(tmp_path: Path) -> None:
    file = tmp_path / "graphs.json"
    write_json(file, MACHINE, FULL, SAMPLES, [])
    content = json.loads(file.read_text())
    del content["pace"]["other_rounds"]
    file.write_text(json.dumps(content))
    assert load_run(file)[1].other_rounds == FULL.rounds


def test_a_picture_has_a_bar_for_everybody_that_was_measured(tmp_path: Path) -> None:
    throughput, p50 = panels_of(DIAMOND, SAMPLES)
    assert list(throughput.bars) == ["separate", "serve-tuned"]
    assert throughput.loads == ["32"]
    assert p50.bars["serve-tuned"]["32"].median == 10
    assert draw(DIAMOND, SAMPLES, tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text()
    ElementTree.fromstring(text)
    assert "servepipe, all separate" in text
    assert "Ray Serve tuned" in text


def test_the_same_results_give_the_same_picture(tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg"):
        draw(DIAMOND, SAMPLES, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_nothing_gives_no_picture(tmp_path: Path) -> None:
    assert not draw(DIAMOND, [], tmp_path / "a.svg")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["startup", "steps", "mixture", "values"])
def test_other_cases_have_pictures_of_their_own_figures(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    figures = dict.fromkeys(("throughput", "p50", "p50 fast", "running_s", "replica_mb", "us_per_step"), 3.0)
    samples = [Sample(name, case.loads[-1].name, case.contestants[0], 1, figures)]
    assert draw(case, samples, tmp_path / "a.svg")
