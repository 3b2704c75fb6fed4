"""Every reason that the code can set has its paragraph, and every paragraph a reason."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest

from servepipe_operator.engine.reasons import CandidateReason, EventReason
from servepipe_operator.engine.rollout import Stage

PAGE = (Path(__file__).parents[3] / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
PARAGRAPHS = dict(re.findall(r"^### `(\w+)`\n(.*?)(?=^#|\Z)", PAGE, flags=re.M | re.S))
#: Sections whose paragraphs have to say what callers see.
TROUBLE = ("It goes on by itself", "Somebody has to do something")


def section(title: str) -> str:
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def test_reasons_and_paragraphs_are_the_same() -> None:
    assert PARAGRAPHS.keys() == set(get_args(EventReason))
    assert len(PARAGRAPHS) == len(re.findall(r"^### ", PAGE, flags=re.M)), "a reason has two paragraphs"


@pytest.mark.parametrize("title", TROUBLE)
def test_trouble_says_what_callers_see(title: str) -> None:
    found = re.findall(r"^### `(\w+)`$", section(title), flags=re.M)
    assert found
    silent = [reason for reason in found if "callers" not in PARAGRAPHS[reason].lower()]
    assert not silent


def test_what_somebody_has_to_do_is_said() -> None:
    found = re.findall(r"^### `(\w+)`$", section("Somebody has to do something"), flags=re.M)
    told = ("**Do", "The same for", "Nothing to do")
    assert not [reason for reason in found if not any(word in PARAGRAPHS[reason] for word in told)]


def test_what_a_candidate_waits_for_is_in_the_table() -> None:
    table = section("What a candidate waits for")
    assert set(re.findall(r"^\| `(\w+)` \|", table, flags=re.M)) == set(get_args(CandidateReason))
    assert {stage.value for stage in Stage} - {"Failed"} <= set(get_args(CandidateReason))
