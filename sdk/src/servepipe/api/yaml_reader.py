"""YAML or JSON to JSON values, as kubectl would read it; what readers of YAML disagree about is an error.

Works on the parser's events and without recursion: hostile nesting ends in an error, aliases are refused (a few lines
of them can stand for gigabytes), and nothing is ever constructed but JSON.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, NoReturn

import yaml

from servepipe.api.yaml_scalars import Ambiguous, resolve_plain
from servepipe.errors import ResourceError

__all__ = ["MAX_TEXT", "read_yaml"]

#: Characters; an API server takes less (about 1.5 MB).
MAX_TEXT = 4 * 1024 * 1024

_MAX_DEPTH = 150
# libyaml's parser where PyYAML was built with it: ten times faster, the same events.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# YAML 1.1 takes these for line breaks and folds them; kubectl writes them raw inside quotes.
_ODD_BREAKS = "\x85\u2028\u2029"


def read_yaml(text: str, source: str = "") -> Any:
    """The one document in ``text``.

    Args:
        text: YAML or JSON.
        source: Name of the file, for errors.

    Raises:
        ResourceError: It is no YAML, or not the part of it that everybody reads alike; ``where`` has line and column.
    """
    if len(text) > MAX_TEXT:
        raise ResourceError(f"{len(text)} characters are more than any resource may have", where=source)
    text = text.removeprefix("\ufeff")
    if text.lstrip().startswith("{"):
        try:
            return _read_json(text, source)
        except json.JSONDecodeError:
            pass  # YAML in flow style
    return _read_events(text, source)


# --- JSON -------------------------------------------------------------------------------------------------------------


def _read_json(text: str, source: str) -> Any:
    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in items:
            if key in found:
                raise ResourceError(f"the key {key!r:.60} stands twice in an object", where=source)
            found[key] = value
        return found

    def constant(name: str) -> NoReturn:
        raise ResourceError(f"{name} is not JSON", where=source)

    def number(digits: str) -> Any:
        value = resolve_plain(digits)
        if isinstance(value, str):
            raise ResourceError(f"{digits:.60} is larger than any number can be", where=source)
        return value

    try:
        document = json.loads(
            text, object_pairs_hook=pairs, parse_constant=constant, parse_int=number, parse_float=number
        )
        # Escapes such as "\ud800" can spell what no UTF-8 text can hold.
        json.dumps(document, ensure_ascii=False).encode()
    except RecursionError:
        raise ResourceError("nested too deeply", where=source) from None
    except UnicodeEncodeError:
        raise ResourceError("a string has a lone surrogate, which UTF-8 cannot carry", where=source) from None
    return document


# --- YAML -------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Open:
    """A list or object whose end has not come yet."""

    container: list[Any] | dict[str, Any]
    key: str | None = None


def _read_events(text: str, source: str) -> Any:
    for character in _ODD_BREAKS:
        if character in text:
            line = text.count("\n", 0, text.index(character)) + 1
            raise ResourceError(
                f"U+{ord(character):04X} is a line break to some readers of YAML and a character to others",
                where=f"{source}:{line}" if source else f"line {line}",
                fix='Write it as an escape in double quotes, such as "\\u2028"; kubectl can print JSON (-o json).',
            )
    try:
        documents = _Builder(source).build(yaml.parse(text, Loader=_LOADER))
    except yaml.MarkedYAMLError as error:
        what = " ".join(part for part in (error.context, error.problem) if part)
        fix = "Indent with spaces: YAML takes no tabs for it." if _at_tab(error.problem_mark, text) else ""
        raise ResourceError(f"not YAML: {what}", where=_place(error.problem_mark, source), fix=fix) from None
    except (yaml.YAMLError, UnicodeError) as error:
        first = str(error).splitlines()[0]
        raise ResourceError(f"not YAML: {first}", where=source) from None
    documents = [document for document in documents if document is not None]
    if len(documents) != 1:
        found = "there is none" if not documents else f"there are {len(documents)}"
        raise ResourceError(f"expected one YAML document, {found}", where=source)
    return documents[0]


def _at_tab(mark: Any, text: str) -> bool:
    lines = text.split("\n")
    return mark is not None and mark.line < len(lines) and lines[mark.line].lstrip(" ").startswith("\t")


class _Builder:
    """Turns events into values; ``open`` is the stack of containers around the current place."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.open: list[_Open] = []
        self.documents: list[Any] = []

    def build(self, events: Any) -> list[Any]:
        for event in events:
            match event:
                case yaml.AliasEvent():
                    self.fail(event, "anchors and aliases are not supported", "Write the value out where it is needed.")
                case yaml.ScalarEvent():
                    self.refuse_extras(event)
                    self.scalar(event)
                case yaml.MappingStartEvent() | yaml.SequenceStartEvent():
                    self.refuse_extras(event)
                    self.start(event)
                case yaml.MappingEndEvent() | yaml.SequenceEndEvent():
                    self.add(self.open.pop().container, event)
        return self.documents

    def scalar(self, event: yaml.ScalarEvent) -> None:
        value: Any = event.value
        if not event.style:  # plain: None from PyYAML itself, "" from libyaml
            try:
                value = resolve_plain(event.value)
            except Ambiguous as error:
                self.fail(event, str(error), f'For the string write "{event.value}" in quotes.')
        else:
            try:
                event.value.encode()
            except UnicodeEncodeError:
                self.fail(event, "a string has a lone surrogate, which UTF-8 cannot carry")
        top = self.open[-1] if self.open else None
        if top is None or isinstance(top.container, list) or top.key is not None:
            self.add(value, event)
            return
        if not isinstance(value, str):
            self.fail(event, f"the key {event.value} is not a string", f'Write "{event.value}" in quotes.')
        if value == "<<" and not event.style:
            self.fail(event, "<< merges another object to some readers of YAML", 'For the string write "<<" in quotes.')
        if value in top.container:
            self.fail(event, f"the key {value!r:.60} stands twice in an object", "Remove one of them.")
        top.key = value

    def start(self, event: yaml.NodeEvent) -> None:
        top = self.open[-1] if self.open else None
        if top is not None and isinstance(top.container, dict) and top.key is None:
            self.fail(event, "a key is a string, not a list or an object")
        if len(self.open) >= _MAX_DEPTH:
            self.fail(event, f"nested deeper than {_MAX_DEPTH} lists and objects")
        self.open.append(_Open({} if isinstance(event, yaml.MappingStartEvent) else []))

    def add(self, value: Any, event: yaml.Event) -> None:
        if not self.open:
            self.documents.append(value)
            return
        top = self.open[-1]
        if isinstance(top.container, list):
            top.container.append(value)
        else:
            assert top.key is not None  # a value never comes before its key
            top.container[top.key] = value
            top.key = None

    def refuse_extras(self, event: yaml.NodeEvent) -> None:
        if event.anchor is not None:
            self.fail(event, "anchors and aliases are not supported", "Write the value out where it is needed.")
        tag = getattr(event, "tag", None)
        if tag is not None:
            self.fail(event, f"the tag {tag} is not supported", "Leave it out; quote what is a string.")

    def fail(self, event: yaml.Event, what: str, fix: str = "") -> NoReturn:
        raise ResourceError(what, where=_place(event.start_mark, self.source), fix=fix)


def _place(mark: Any, source: str) -> str:
    if mark is None:
        return source
    place = f"{mark.line + 1}:{mark.column + 1}"
    return f"{source}:{place}" if source else f"line {place}"
