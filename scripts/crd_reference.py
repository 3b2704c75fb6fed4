"""The page on every field of a ServePipeline, docs/reference.md, generated from the CRD.

    python scripts/crd_reference.py            # or: make generate
    python scripts/crd_reference.py --check    # changes nothing; exits with 1 if the page is out of date

The descriptions are those of the models (`servepipe.api.v1alpha1`), as `kubectl explain` shows them. What they say
after "Default" gets a column of its own.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from servepipe.api.crd import crd
from servepipe.api.v1alpha1.base import explained_patterns

PAGE = Path(__file__).parents[1] / "docs" / "reference.md"

Schema = Mapping[str, Any]

#: Names of the keys of maps whose values are objects, by the path of the map.
KEYS = {"spec.nodes": "NODE", "status.nodes": "NODE", "status.deadlines": "WHAT"}

HEAD = """\
<!-- Generated from the CRD by `make generate`; do not edit. -->
# Reference: every field

Of `{api_version}`, kind `{kind}` (`kubectl get {short}`). {description}
[The resource](resource.md) says how the fields work together and what a change of each restarts; [Limits](limits.md)
names what is accepted and does not happen yet. `kubectl explain {short}.spec --recursive` shows the same as this page.

An API server refuses fields that are not here. **Bold** fields are required. What is not set stays unset in the
cluster; the default is what then counts. A *quantity* is Kubernetes': `2`, `500m`, `16Gi`. *JSON* is free: values and
[expressions](resource.md#values), or a part of a Kubernetes object that is passed on as it is.

`kubectl get {short}` has these columns: {columns}."""

#: A sentence after others; "Default image of nodes." is a description.
_DEFAULT = re.compile(r"(?<=\. )Default:? (.+?)\.(?= |$)")


@dataclass(frozen=True)
class Section:
    """An object and its fields.

    Args:
        path: Like ``spec.nodes.NODE.upgrade``.
    """

    path: str
    schema: Schema


def sections(path: str, schema: Schema) -> Iterator[Section]:
    """``schema`` and all objects below it, each before what is in it."""
    yield Section(path, schema)
    for name, field in schema["properties"].items():
        below, inner = _object_in(f"{path}.{name}", field)
        if inner is not None:
            yield from sections(below, inner)


def page() -> str:
    """The whole page."""
    made = crd()["spec"]
    version = made["versions"][0]
    root = version["schema"]["openAPIV3Schema"]
    columns = ", ".join(f"`{one['name']}`" for one in version["additionalPrinterColumns"])
    found = [one for top in ("spec", "status") for one in sections(top, root["properties"][top])]
    first: dict[str, str] = {}
    parts = [
        HEAD.format(
            api_version=f"{made['group']}/{version['name']}",
            kind=made["names"]["kind"],
            short=made["names"]["shortNames"][0],
            description=root["description"],
            columns=columns,
        ),
        *_rules(root),
    ]
    for one in found:
        same = first.setdefault(_fingerprint(one.schema), one.path)
        parts += ["", f"## {one.path}", "", one.schema.get("description", "")]
        if same != one.path:
            parts += ["", f"Its fields are those of [{same}](#{slug(same)})."]
            continue
        parts += ["", *_table(one), *_rules(one.schema)]
    return "\n".join(parts) + "\n"


def slug(heading: str) -> str:
    """The anchor that Markdown readers give a heading."""
    return re.sub(r"[^a-z0-9_ -]", "", heading.lower()).replace(" ", "-")


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description="Generate docs/reference.md from the CRD.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if the page is out of date")
    wanted = page()
    if not parser.parse_args().check:
        PAGE.write_text(wanted, encoding="utf-8", newline="\n")
        return 0
    if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == wanted:
        return 0
    sys.stderr.write(f"docs/{PAGE.name} is out of date; run: make generate\n")
    return 1


# --- Parts of it ------------------------------------------------------------------------------------------------------


def _object_in(path: str, field: Schema) -> tuple[str, Schema | None]:
    """The object that a field is, or is a list or a map of; and its path."""
    if "properties" in field:
        return path, field
    if "items" in field:
        return _object_in(f"{path}[]", field["items"])
    if "properties" in field.get("additionalProperties", {}):
        return f"{path}.{KEYS[path]}", field["additionalProperties"]
    return path, None


def _table(section: Section) -> Iterator[str]:
    required = section.schema.get("required", ())
    yield "| field | type | default | bounds | what |"
    yield "| --- | --- | --- | --- | --- |"
    for name, field in section.schema["properties"].items():
        told, default = _told(field.get("description", ""))
        shown = f"**`{name}`**" if name in required else f"`{name}`"
        cells = (shown, _type(f"{section.path}.{name}", field), default, _bounds(field), told)
        yield "| " + " | ".join(cell.replace("|", "\\|").replace("<", "&lt;") for cell in cells) + " |"


def _rules(schema: Schema) -> list[str]:
    rules = [rule["message"] for rule in schema.get("x-kubernetes-validations", ())]
    rules += [
        f"`{name}`: {rule['message']}"
        for name, field in schema.get("properties", {}).items()
        if "properties" not in field
        for rule in field.get("x-kubernetes-validations", ())
    ]
    return ["", "Rules:", *(f"- {one}" for one in rules)] if rules else []


def _told(description: str) -> tuple[str, str]:
    """The description without what it says of the default, and that."""
    found = _DEFAULT.search(description)
    if found is None:
        return description, ""
    rest = description[: found.start()] + description[found.end() :]
    prose = " " in found[1] or found[1] in ("all", "none")
    return " ".join(rest.split()), found[1] if prose else f"`{found[1]}`"


def _type(path: str, field: Schema) -> str:
    below, inner = _object_in(path, field)
    if "items" in field:
        return f"list of {_type(f'{path}[]', field['items'])}"
    if "additionalProperties" in field:
        values = _type(below, field["additionalProperties"])
        return f"map of {values}"
    if inner is not None:
        return f"[object](#{slug(below)})"
    if "enum" in field:
        return ", ".join(f"`{one}`" for one in field["enum"])
    if field.get("x-kubernetes-int-or-string"):
        return "quantity"
    if field.get("x-kubernetes-preserve-unknown-fields"):
        return "JSON object" if field.get("type") == "object" else "JSON"
    return "time" if field.get("format") == "date-time" else str(field["type"])


def _bounds(field: Schema) -> str:
    """What a value may be, in words."""
    if field.get("x-kubernetes-int-or-string"):
        return ""
    words = explained_patterns()[field["pattern"]] if "pattern" in field else ""
    said = [words] if words else []
    least, most = field.get("minimum"), field.get("maximum")
    if least is not None or most is not None:
        said.append(_between(least, most, ""))
    for kind, unit in (("Length", "characters"), ("Items", "items"), ("Properties", "entries")):
        least, most = field.get(f"min{kind}"), field.get(f"max{kind}")
        if (most is not None or least is not None) and "at most" not in words:
            said.append(_between(least, most, f" {unit}"))
    return "; ".join(said)


def _between(least: int | None, most: int | None, unit: str) -> str:
    if most is None or most == 2**31 - 1:
        return f"{least} or more{unit}"
    return f"at most {most:,}{unit}" if least is None else f"{least} to {most:,}{unit}"


def _fingerprint(schema: Schema) -> str:
    """Equal for objects with the same fields, whatever is said of the objects themselves."""
    return repr(sorted((key, value) for key, value in schema.items() if key != "description"))


if __name__ == "__main__":
    raise SystemExit(main())
