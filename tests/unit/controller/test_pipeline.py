"""Which of two copies of a pipeline a look goes by."""

from typing import Any

import pytest

from servepipe_operator.controller.pipeline import newest


def copy(version: str, uid: str = "u") -> dict[str, Any]:
    return {"metadata": {"uid": uid, "resourceVersion": version}}


@pytest.mark.parametrize(
    ("seen", "written", "later"),
    [
        (copy("9"), copy("10"), "written"),
        (copy("10"), copy("9"), "seen"),
        (copy("10"), copy("10"), "seen"),
        (copy("9", "new"), copy("10", "old"), "seen"),
        (copy("a"), copy("b"), "seen"),
    ],
    ids=["the watch lags behind", "the watch is ahead", "the same", "another object", "no numbers"],
)
def test_a_look_never_goes_back(seen: dict[str, Any], written: dict[str, Any], later: str) -> None:
    assert newest(seen, written) is {"seen": seen, "written": written}[later]
