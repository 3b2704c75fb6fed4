"""Writer and reader against what Go's sigs.k8s.io/yaml (kubectl, API servers) reads and writes; see golden/cases.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from servepipe.api.yaml_reader import read_yaml
from servepipe.api.yaml_scalars import format_float, format_string
from servepipe.errors import ResourceError

Row = dict[str, Any]

TABLE: list[Row] = json.loads((Path(__file__).parent / "golden" / "table.json").read_text())
TEXTS = [row for row in TABLE if "text" in row]
NUMBERS = [row for row in TABLE if "number" in row]
REFUSED = object()


def read(text: str) -> Any:
    try:
        return read_yaml(text)
    except ResourceError:
        return REFUSED


def same(left: Any, right: Any) -> bool:
    """Equal in value and type: 1 is not True, and not 1.0. Of large integers Go keeps a float's digits only."""
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, int) and left not in range(-(2**63), 2**64):
        return float(left) == float(right)
    return type(left) is type(right) and bool(left == right)


def check(rows: list[Row], problem: Any) -> None:
    found = [f"{row.get('text', row.get('number'))!r}: {text}" for row in rows if (text := problem(row))]
    assert not found, f"{len(found)} of {len(rows)}:\n" + "\n".join(found)


def test_the_table_is_large_and_has_both_kinds() -> None:
    assert len(TEXTS) > 400
    assert len(NUMBERS) > 30
    assert sum(row["ours"][0] == '"' for row in TEXTS) > 200
    assert sum(row["ours"][0] != '"' for row in TEXTS) > 50


def test_the_writer_still_writes_what_go_was_asked_about() -> None:
    def problem(row: Row) -> str:
        ours = format_string(row["text"], in_flow=False), format_string(row["text"], in_flow=True)
        return "" if ours == (row["ours"], row["oursFlow"]) else f"now {ours}; make the table again"

    check(TEXTS, problem)


@pytest.mark.parametrize(
    ("field", "wanted"),
    [
        ("oursRead", lambda text: {"k": text}),
        ("flowRead", lambda text: {"k": text, "l": [text]}),
        ("keyRead", lambda text: {text: 1}),
    ],
)
def test_go_reads_our_strings_as_they_are(field: str, wanted: Any) -> None:
    check(TEXTS, lambda row: "" if row[field].get("json") == wanted(row["text"]) else f"Go: {row[field]}")


def test_pyyaml_and_we_read_our_strings_as_they_are() -> None:
    def problem(row: Row) -> str:
        text = row["text"]
        documents = {
            f"k: {row['ours']}\n": {"k": text},
            f"{{k: {row['oursFlow']}, l: [{row['oursFlow']}]}}\n": {"k": text, "l": [text]},
            f"? {row['oursFlow']}\n: 1\n": {text: 1},
        }
        for document, wanted in documents.items():
            for reader in (read, yaml.safe_load):
                if (got := reader(document)) != wanted:
                    return f"{reader.__name__} of {document!r} is {got!r}"
        return ""

    check(TEXTS, problem)


def test_unquoted_text_is_read_as_go_reads_it_or_refused() -> None:
    def problem(row: Row) -> str:
        for field, document in (("plain", f"k: {row['text']}\n"), ("plainKey", f"{row['text']}: 1\n")):
            if field not in row:
                continue
            ours, go = read(document), row[field].get("json", REFUSED)
            if ours is not REFUSED and not same(ours, go):
                return f"{document!r}: ours {ours!r}, Go {row[field]}"
        return ""

    check(TEXTS, problem)


# Go's own YAML folds U+0085 into a space when it converts JSON, whatever anybody could read afterwards.
LOST_BY_GO = ("\x85", "a\x85b")
# Go writes these line breaks raw, which other readers fold; and it writes the key << so that it reads a merge itself.
RAW_BREAKS = {"\u2028", "\u2029", "a\u2028b", "a\u2029b"}


def test_what_go_writes_for_a_string_is_read_as_that_string() -> None:
    def problem(row: Row) -> str:
        text = row["text"]
        for document, wanted in ((row.get("written"), {"k": text}), (row.get("writtenKey"), {text: 1})):
            if document and read(document) not in (wanted, REFUSED):
                return f"{document!r}: ours {read(document)!r}"
        return ""

    check([row for row in TEXTS if row["text"] not in LOST_BY_GO], problem)


def test_of_what_go_writes_only_what_readers_take_for_something_else_is_refused() -> None:
    values = {row["text"] for row in TEXTS if row.get("written") and read(row["written"]) is REFUSED}
    assert values == RAW_BREAKS
    keys = {row["text"] for row in TEXTS if row.get("writtenKey") and read(row["writtenKey"]) is REFUSED}
    assert keys == RAW_BREAKS | {"<<"}


def test_floats_are_written_so_that_everybody_reads_the_same_number() -> None:
    def problem(row: Row) -> str:
        number = json.loads(row["number"])
        if format_float(number) != row["ours"]:
            return f"now {format_float(number)}"
        document = f"k: {row['ours']}\n"
        readings = row["oursRead"]["json"], read(document), yaml.safe_load(document)
        return "" if all(same(reading, {"k": number}) for reading in readings) else str(readings)

    check([row for row in NUMBERS if "ours" in row], problem)


def test_numbers_are_read_as_go_reads_and_writes_them() -> None:
    def problem(row: Row) -> str:
        ours = read(f"k: {row['number']}\n"), read(row["written"])
        go = row["plain"].get("json"), row["writtenRead"].get("json")
        return "" if all(map(same, ours, go)) else f"ours {ours}, Go {go}"

    check(NUMBERS, problem)
