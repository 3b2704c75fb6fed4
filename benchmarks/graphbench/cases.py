"""What is measured, as data: graphs, requests and what must come back, loads, and who takes part."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["CASES", "CONNECTIONS", "Case", "Load", "Request", "size_name"]

CONNECTIONS = (1, 8, 32, 128)
DOCUMENTS = "examples/document_triage/inputs"
#: As in the example's own expected.json.
TEXTS = (
    ("complaint-de", "de", "negative"),
    ("complaint-en", "en", "negative"),
    ("complaint-it", "it", "negative"),
    ("complaint-nl", "de", "negative"),
    ("notice-en", "en", "positive"),
    ("praise-en", "en", "positive"),
    ("praise-es", "es", "positive"),
    ("praise-fr", "fr", "positive"),
)
TRIAGE_NODES = (
    "file-type",
    "text-detection",
    "orientation",
    "recognition",
    "page-text",
    "plain-text",
    "language-detector",
    "sentiment-analysis",
    "report",
    "refuse",
)
KIB = 1024
MIB = 1024 * KIB


@dataclass(frozen=True)
class Request:
    """One request and what is right.

    Args:
        answer: JSON that the answer must be; with ``partly`` an object whose fields it must have.
        noop: What the no-op answers instead.
        label: Latencies are also told for each label; "" for none.
        file: Where the body is, below the project's root, or ``package:path`` inside an installed package; "": here.
    """

    body: bytes
    answer: Any
    noop: Any = None
    label: str = ""
    partly: bool = False
    file: str = ""


@dataclass(frozen=True)
class Load:
    """A number of connections, on each of which the next request follows the answer to the one before.

    Args:
        least_seconds: Measured at least in each round: long enough that the slowest answers some requests meanwhile.
    """

    name: str
    connections: int
    requests: tuple[Request, ...]
    least_seconds: float = 0.0

    @property
    def title(self) -> str:
        """``2 x 8 MiB, 1 connection``: the name, in which connections come last."""
        first, _, last = self.name.rpartition(", ")
        connections = f"{last} connection" + ("" if last == "1" else "s")
        return f"{first}, {connections}" if first else connections


@dataclass(frozen=True)
class Case:
    """One graph.

    Args:
        kind: ``load``: contestants are up together and take turns. ``startup``, ``steps``: see their modules.
        nodes: The nodes of its pipeline.
        contestants: By name, in the order of tables.
        quick: Names of the loads of a quick run; empty: not in it.
        source: The file of its pipeline, below the project's root; "" for ``benchmarks/workload/<name>.py``.
    """

    name: str
    title: str
    kind: str
    nodes: tuple[str, ...]
    contestants: tuple[str, ...]
    loads: tuple[Load, ...]
    quick: tuple[str, ...] = ()
    quick_contestants: tuple[str, ...] = ()
    source: str = ""


def size_name(size: int) -> str:
    """``8 KiB``."""
    return f"{size // MIB} MiB" if size >= MIB else f"{size // KIB} KiB"


def _request(values: list[int], answer: Any, label: str = "") -> Request:
    return Request(json.dumps(values, separators=(",", ":")).encode(), answer, values[-1], label)


def _loads(*requests: Request, connections: tuple[int, ...] = CONNECTIONS) -> tuple[Load, ...]:
    return tuple(Load(str(number), number, requests) for number in connections)


#: Sizes of values: at how many connections, and for how long at least. By value 2 x 64 MiB take more than 3 s.
_VALUES = (
    (8 * KIB, (1, 8, 32), 0.0),
    (64 * KIB, (1, 8, 32), 0.0),
    (MIB, (1, 8, 32), 0.0),
    (8 * MIB, (1, 8), 3.0),
    (64 * MIB, (1,), 10.0),
)


def _value_loads() -> tuple[Load, ...]:
    return tuple(
        Load(f"2 x {size_name(size)}, {number}", number, (_request([size], [size, 1, 1, size, 2, 2]),), least_seconds)
        for size, connections, least_seconds in _VALUES
        for number in connections
    )


def _document_loads() -> tuple[Load, ...]:
    """Texts alone, and with a scanned page among eight texts, which takes a hundred times as long as one of them."""
    texts = tuple(
        Request(b"", _document(language, sentiment), partly=True, file=f"{DOCUMENTS}/{name}.txt")
        for name, language, sentiment in TEXTS
    )
    page = Request(b"", {"accepted": True, "language": {"code": "en"}}, partly=True, file="skimage:data/page.png")
    return (
        *(Load(f"texts, {number}", number, texts, least_seconds=3.0) for number in CONNECTIONS),
        *(Load(f"with pages, {number}", number, (page, *texts), least_seconds=6.0) for number in (1, 8)),
        Load("with pages, 32", 32, (page, *texts), least_seconds=10.0),
    )


def _document(language: str, sentiment: str) -> dict[str, Any]:
    return {"accepted": True, "language": {"code": language}, "sentiment": {"label": sentiment}}


EVERYBODY = (
    "separate",
    "auto",
    "inline",
    "serve-tuned",
    "serve-default",
    "one-deployment",
    "http",
    "floor",
)
_TEN = range(10)

CASES: Mapping[str, Case] = {
    case.name: case
    for case in (
        Case(
            "diamond",
            "Diamond: two models, and a third that takes both answers",
            "load",
            ("m1", "m2", "ensemble"),
            (*EVERYBODY, "noop", "client"),
            _loads(*(_request([n, 2 * n, 3 * n], 8 * n) for n in range(1, 11))),
            quick=("1", "32"),
            quick_contestants=("separate", "auto", "inline", "serve-tuned", "serve-default", "http", "noop"),
        ),
        Case(
            "noop",
            "No-op: one model that answers what it is asked",
            "load",
            ("echo",),
            tuple(name for name in EVERYBODY if name != "auto"),
            _loads(*(_request([n], n) for n in _TEN)),
        ),
        Case(
            "chain",
            "Chain of five models",
            "load",
            ("s1", "s2", "s3", "s4", "s5"),
            tuple(name for name in EVERYBODY if name != "auto"),
            _loads(*(_request([n], n + 5) for n in _TEN)),
        ),
        Case(
            "fan",
            "Fan-out of eight models, and a function that adds their answers up",
            "load",
            (*(f"scales-{n}" for n in range(8)), "total"),
            EVERYBODY,
            _loads(*(_request([n], 36 * n) for n in _TEN)),
        ),
        Case(
            "mixture",
            "One call in ten takes 50 ms, the others 1 ms",
            "load",
            ("work",),
            ("separate", "serve-tuned", "serve-default", "one-deployment", "http", "floor"),
            _loads(_request([50], 50, "slow"), *(_request([1], 1, "fast") for _ in range(9))),
        ),
        Case(
            "values",
            "Two large values from two models to a third",
            "load",
            ("left", "right", "measure"),
            ("separate", "serve-tuned", "serve-by-value", "serve-default", "one-deployment", "http", "floor"),
            _value_loads(),
        ),
        Case(
            "batch",
            "A kernel of 5 ms a batch and 0.1 ms an item, two replicas",
            "load",
            ("kernel",),
            ("separate", "serve-tuned", "serve-default", "one-deployment", "http", "floor"),
            _loads(*(_request([n], n + 1) for n in _TEN)),
        ),
        Case(
            "triage",
            "The document-triage example: file type, OCR, language and sentiment with real models",
            "load",
            TRIAGE_NODES,
            ("separate", "auto", "serve-tuned", "serve-default", "one-deployment", "http", "floor"),
            _document_loads(),
            source="examples/document_triage/pipeline.py",
        ),
        Case(
            "startup",
            "Time to RUNNING of eight models, and the memory of their replicas",
            "startup",
            tuple(f"scales-{n}" for n in range(8)),
            ("separate", "serve-tuned"),
            (Load("8 nodes", 1, (_request([1], [1, 2, 3, 4, 5, 6, 7, 8]),)),),
        ),
        Case(
            "steps",
            "What the interpreter itself costs, in one process without Ray",
            "steps",
            (),
            ("interpreter", "by-hand"),
            (Load("async", 1, ()), Load("sync", 1, ())),
            quick=("async", "sync"),
            quick_contestants=("interpreter", "by-hand"),
        ),
    )
}
