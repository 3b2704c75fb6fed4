"""The part of requirements.lock that some extras or dependency groups of pyproject.toml need, with its hashes.

    python scripts/select_lock.py --extra runtime > runtime.txt       # for pip install --no-deps --require-hashes -r
    python scripts/select_lock.py --group examples --pins > pins.txt  # only the versions, as constraints

The lock says of each package which others asked for it ("# via"); so one lock is enough, and a package has the same
version everywhere. Only Python's own library is used: it runs where nothing is installed yet.
"""

import argparse
import re
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Locked:
    """A release in the lock.

    Attributes:
        name: Normalised.
        pin: `name==version`, with its environment marker.
        lines: As they stand in the lock.
        via: Who asked for it; the project itself among them as `servepipe`.
    """

    name: str
    pin: str
    lines: tuple[str, ...]
    via: frozenset[str]


def parse(lock: str) -> list[Locked]:
    """All releases of a lock as `uv pip compile --generate-hashes` writes it. Raises ValueError for anything else."""
    blocks: list[list[str]] = []
    for line in lock.splitlines():
        if line[:1] not in ("", " ", "#"):
            blocks.append([])
        elif not blocks:
            raise ValueError(f"requirements.lock begins with {line!r}, not with a package; write it again by make lock")
        blocks[-1].append(line)
    return [_locked(lines) for lines in blocks]


def _locked(lines: list[str]) -> Locked:
    pin = lines[0].removesuffix("\\").strip()
    if "==" not in pin or not any(line.strip().startswith("--hash=sha256:") for line in lines):
        raise ValueError(
            f"requirements.lock has {pin!r} without a version or without a hash; write it again by make lock"
        )
    said = [line.strip().removeprefix("#").strip() for line in lines if line.strip().startswith("#")]
    via = (entry.removeprefix("via").strip() for entry in said)
    return Locked(name_of(pin), pin, tuple(lines), frozenset(name_of(entry) for entry in via if entry))


def name_of(requirement: str) -> str:
    """The normalised name of the package: `ray` of `Ray[serve]==2.60.0`."""
    found = re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*", requirement)
    if found is None:
        raise ValueError(f"{requirement!r} names no package")
    return re.sub(r"[-_.]+", "-", found[0]).lower()


def wanted(project: dict[str, Any], extras: Iterable[str], groups: Iterable[str]) -> set[str]:
    """Names of the packages that pyproject.toml itself lists. Extras come with the dependencies of the project."""
    table = project["project"]
    own, found = name_of(table["name"]), set[str]()
    asked = list(extras)
    if asked:
        found.update(map(name_of, table["dependencies"]))
    while asked:
        for requirement in table["optional-dependencies"][asked.pop()]:
            if name_of(requirement) == own:
                asked += re.split(r"\s*,\s*", requirement.partition("[")[2].partition("]")[0])
            else:
                found.add(name_of(requirement))
    for group in groups:
        found.update(map(name_of, project["dependency-groups"][group]))
    return found


def closure(releases: Iterable[Locked], names: Iterable[str]) -> Iterator[Locked]:
    """The releases of these packages and of all that they need, in the order of the lock.

    Raises ValueError where a package is not in the lock.
    """
    releases = list(releases)
    needs: defaultdict[str, set[str]] = defaultdict(set)
    for release in releases:
        for parent in release.via:
            needs[parent].add(release.name)
    taken, todo = set[str](), set(names)
    missing = todo - {release.name for release in releases}
    if missing:
        raise ValueError(f"requirements.lock lacks {', '.join(sorted(missing))}; write it again by make lock")
    while todo:
        name = todo.pop()
        taken.add(name)
        todo |= needs[name] - taken
    return (release for release in releases if release.name in taken)


def main() -> int | str:
    parser = argparse.ArgumentParser(description="Select the part of requirements.lock that is needed.")
    parser.add_argument("--extra", action="append", default=[], help="an extra of pyproject.toml")
    parser.add_argument("--group", action="append", default=[], help="a dependency group of pyproject.toml")
    parser.add_argument("--pins", action="store_true", help="only names and versions, for pip's --constraint")
    parser.add_argument("--folder", type=Path, default=ROOT, help="where both files lie (default: %(default)s)")
    asked = parser.parse_args()
    try:
        project = tomllib.loads((asked.folder / "pyproject.toml").read_text())
        releases = parse((asked.folder / "requirements.lock").read_text())
        for release in closure(releases, wanted(project, asked.extra, asked.group)):
            sys.stdout.write((release.pin if asked.pins else "\n".join(release.lines)) + "\n")
    except (OSError, ValueError) as error:
        return f"error: {error}"
    except KeyError as error:
        return f"error: pyproject.toml has no {error}"
    return 0


if __name__ == "__main__":
    sys.exit(main())
