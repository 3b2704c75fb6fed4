"""Which branch a switch or a split takes."""

from __future__ import annotations

import hashlib
import json
import random
from typing import Any

from servepipe.errors import RequestError
from servepipe.graph.ir import Split, Switch
from servepipe.graph.program import StepPlan

__all__ = ["branch_of", "bucket_of", "case_of"]


def case_of(plan: StepPlan, value: Any) -> int:
    """The number of the switch's branch for ``value``: equal in type and value, so that 1, 1.0 and True differ.

    A subclass of ``str`` or ``int`` (an enum's member) counts as what it extends.
    """
    step = plan.step
    assert isinstance(step, Switch)
    for kind in (bool, str, int):
        if isinstance(value, kind):
            nth = plan.nth.get((kind, kind(value)))
            if nth is not None:
                return nth
            break
    if step.default is not None:
        return len(step.cases)
    known = ", ".join(repr(when) for when, _ in step.cases)
    shown = repr(value)
    raise RequestError(
        f"switch {step.name} has no case for {shown if len(shown) <= 80 else shown[:77] + '...'}"
        f" ({type(value).__name__}); its cases are {known}",
        fix="Add a case or a default.",
        step=step.name,
    )


def branch_of(step: Split, value: Any) -> int:
    """The number of the split's branch: by the hash of ``value`` where the split has ``on``, else drawn."""
    bucket = random.randrange(100) if step.on is None else bucket_of(step.name, value)
    for index, (weight, _) in enumerate(step.branches):
        bucket -= weight
        if bucket < 0:
            return index
    raise AssertionError("weights sum to 100")


def bucket_of(step: str, value: Any) -> int:
    """A number below 100 that is the same for the same step and value on every machine, for ever.

    It is the first 8 bytes of SHA-256 over the step's name, a zero byte and the value's JSON (keys sorted, no blanks,
    UTF-8), big-endian, modulo 100. The name makes two splits on the same value independent of each other.
    """
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise RequestError(
            f"split {step} cannot hash a value of type {type(value).__name__}: {error}",
            fix="Split on a JSON value, for instance a user's name.",
            step=step,
        ) from None
    digest = hashlib.sha256(step.encode() + b"\0" + text.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") % 100
