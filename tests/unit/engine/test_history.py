"""Records in a form that this version does not know."""

from __future__ import annotations

from typing import Any

import pytest

from servepipe_operator.engine.history import Checkpoint, HistoryError, read
from servepipe_operator.engine.state import Record

WHOLE = Checkpoint("s", "g", sequence=3).record()


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("node", {}),
        ("node", {"identity": 3}),
        ("graph", {"graph": {}}),
        ("spec", {"spec": "text"}),
        ("checkpoint", {}),
        ("checkpoint", {**WHOLE.data, "nodes": ["m1"]}),
        ("checkpoint", {**WHOLE.data, "ingress": {}}),
    ],
)
def test_a_record_of_another_form_is_named(kind: Any, data: dict[str, Any]) -> None:
    with pytest.raises(HistoryError, match=f"the record {kind} 'x' of sequence 7 is written in a way"):
        read([WHOLE, Record(kind, "x", data, 7)])


def test_only_the_latest_checkpoint_has_to_be_understood() -> None:
    memory = read([Record("checkpoint", "checkpoint", {}, 1), WHOLE])
    assert memory.checkpoint is not None
    assert memory.checkpoint.sequence == 3
