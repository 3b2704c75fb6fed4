"""values.yaml is the one source of the chart's schema and of the table on its page."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from jsonschema import Draft7Validator

from servepipe import __version__

ROOT = Path(__file__).parents[3]


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("chart_values", ROOT / "scripts" / "chart_values.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


chart_values = load()

TEXT = """
# This is about the file.

# What it is.
# In two lines.
# @schema {minimum: 1}
count: 2
group:
  # Inside.
  name: ""
# Free.
# @schema {additionalProperties: {type: string}}
labels:
  # of no importance
  a: b
# Many.
# @schema {items: {type: string}}
many: []
"""


def test_the_comment_above_a_value_is_its_description() -> None:
    values = chart_values.read(TEXT)
    assert [(".".join(value.path), value.description) for value in values] == [
        ("count", "What it is. In two lines."),
        ("group", ""),
        ("group.name", "Inside."),
        ("labels", "Free."),
        ("many", "Many."),
    ]
    assert chart_values.schema(values)["properties"] == {
        "global": {"type": "object"},
        "count": {"description": "What it is. In two lines.", "type": "integer", "default": 2, "minimum": 1},
        "group": {
            "type": "object",
            "additionalProperties": False,
            "properties": {"name": {"description": "Inside.", "type": "string"}},
        },
        "labels": {
            "description": "Free.",
            "type": "object",
            "default": {"a": "b"},
            "additionalProperties": {"type": "string"},
        },
        "many": {"description": "Many.", "type": "array", "items": {"type": "string"}},
    }
    assert chart_values.table(values).splitlines()[2:] == [
        "| `count` | `2` | What it is. In two lines. |",
        "| `group.name` |  | Inside. |",
        '| `labels` | `{"a": "b"}` | Free. |',
        "| `many` | `[]` | Many. |",
    ]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("count: 1\n", "count has no comment"),
        ("# Is.\ncount:\n", "count has no default"),
        ("# Is.\ngroup: {}\n", "group is an empty object"),
        ("# Is.\n# @schema 3\ncount: 1\n", "count: what follows @schema has to be a mapping"),
    ],
)
def test_a_value_that_says_too_little_is_an_error(text: str, told: str) -> None:
    with pytest.raises(chart_values.ValuesError, match=told):
        chart_values.read(text)


def test_every_value_is_read_and_fits_the_schema() -> None:
    text = (chart_values.CHART / "values.yaml").read_text()
    values = chart_values.read(text)
    everything = yaml.safe_load(text)

    def leaves(path: tuple[str, ...], value: object) -> set[tuple[str, ...]]:
        if path in known or not isinstance(value, dict):
            return {path}
        return {leaf for key, inner in value.items() for leaf in leaves((*path, key), inner)}

    known = {value.path for value in values if value.is_leaf}
    assert leaves((), everything) == known
    schema = chart_values.schema(values)
    Draft7Validator.check_schema(schema)
    assert list(Draft7Validator(schema).iter_errors(everything)) == []


def test_the_chart_is_of_this_version() -> None:
    chart = yaml.safe_load((chart_values.CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == __version__
    # 0.1.0-dev.0 is 0.1.0.dev0, and 0.1.0-rc.1 is 0.1.0rc1.
    release, _, suffix = chart["version"].partition("-")
    suffix = suffix.replace(".", "")
    assert release + (f".{suffix}" if suffix.startswith("dev") else suffix) == __version__


def test_the_generated_files_are_up_to_date() -> None:
    for path, text in chart_values.files():
        assert path.read_text() == text, f"{path} is out of date; run: make generate"
