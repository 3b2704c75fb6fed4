"""What `servepipe apply` sends: the file, without what ops have taken into their hands.

    file ──┐                                  ┌── body       what is applied
           ├── decide(file, live, manager) ──▶├── kept       what stays as ops made it, for people
    live ──┘                                  ├── handed     what must be ours before, so that applying removes it
                                              └── rehearsal  what a dry run takes, and `rehearsed` its result

A field that only `servepipe apply` set follows the file. Fields that ops own by their nature (`replicas`,
`autoscaling`, `upgrade`, `suspend`, `paused`) stay as another field manager set them, unless ownership is taken. All
other fields of others are the API server's to refuse.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from servepipe_operator.cluster.fields import MISSING, Path, applied, holders, leaves, value_at, written
from servepipe_operator.engine.state import Json

__all__ = ["MANAGER", "OPS_MANAGER", "Decision", "Kept", "decide"]

#: Holds what `servepipe apply` sets.
MANAGER = "servepipe-apply"
#: Holds what `servepipe scale`, `suspend` and `pause` set: a file must not take it back.
OPS_MANAGER = "servepipe-ops"

_SCALE: tuple[Path, ...] = (("replicas",), ("autoscaling",))
_SHAPE: tuple[Path, ...] = (("upgrade", "strategy"), ("upgrade", "steps"))
# Fields that only make sense together are decided together.
_OF_NODES: tuple[tuple[Path, ...], ...] = (_SCALE, _SHAPE, (("upgrade", "surge"),), (("upgrade", "retryToken"),))
_OF_INGRESS: tuple[tuple[Path, ...], ...] = (_SCALE,)
_OF_SPEC: tuple[tuple[Path, ...], ...] = ((("suspend",),), (("paused",),))


@dataclass(frozen=True, slots=True)
class Kept:
    """A field that stays as somebody else made it.

    Args:
        where: ``spec.nodes.m1.replicas``.
        live: Its value now, `MISSING` where there is none.
        file: What the file says, `MISSING` where it says nothing.
        owners: The field managers that hold it.
    """

    where: str
    live: Any
    file: Any
    owners: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Decision:
    """See the module; ``foreign`` are nodes that are not in the file and that others alone hold, with who they are."""

    body: Json
    kept: tuple[Kept, ...] = ()
    handed: tuple[Path, ...] = ()
    removed: tuple[str, ...] = ()
    foreign: tuple[tuple[str, tuple[str, ...]], ...] = ()
    rehearsal: Json | None = None
    overrides: tuple[tuple[Path, Any], ...] = ()

    def rehearsed(self, result: Json) -> Json:
        """The object as applying will leave it, from what a dry run of ``rehearsal`` answered."""
        result = copy.deepcopy(result)
        for path, value in self.overrides:
            _set(result, path, value)
        return result


def decide(file: Json, live: Json | None, *, take_ownership: bool = False) -> Decision:
    """What to do so that ``live`` becomes what ``file`` says.

    Args:
        file: The resource as the author wrote it.
        live: The object as read, None where there is none yet.
        take_ownership: The file wins over everybody.
    """
    if live is None:
        return Decision(file, rehearsal=file)
    body, rehearsal = copy.deepcopy(file), copy.deepcopy(file)
    kept: list[Kept] = []
    handed: list[Path] = []
    overrides: list[tuple[Path, Any]] = []
    for unit in _units(file, live):
        owners = _owners(live, unit)
        if not owners or not _differs(file, live, unit):
            continue
        if take_ownership:
            # Others' fields of the unit that the file does not name would stay, beside those that it does.
            left = [path for path in unit if value_at(file, path) is MISSING and holders(live, path)]
            if left:
                handed += left
                _hold(rehearsal, live, unit)
                overrides += [(path, value_at(file, path)) for path in unit]
            continue
        kept += _kept(file, live, unit, owners)
        _hold(body, live, unit)
        _hold(rehearsal, live, unit)
    removed, foreign = _left_out(file, live)
    for name in removed:
        path: Path = ("spec", "nodes", name)
        if holders(live, path, apart_from=MANAGER):
            handed.append(path)
            rehearsal["spec"]["nodes"][name] = {"import": value_at(live, (*path, "import"))}
            overrides.append((path, MISSING))
    return Decision(body, tuple(kept), tuple(handed), removed, foreign, rehearsal, tuple(overrides))


def _units(file: Json, live: Json) -> Iterator[tuple[Path, ...]]:
    """The fields of both that ops own by their nature, those together that are decided together."""
    for unit in _OF_SPEC:
        yield tuple(("spec", *path) for path in unit)
    for unit in _OF_INGRESS:
        yield tuple(("spec", "ingress", *path) for path in unit)
    for name in file["spec"]["nodes"]:
        if name in live["spec"]["nodes"]:
            for unit in _OF_NODES:
                yield tuple(("spec", "nodes", name, *path) for path in unit)


def _owners(live: Json, unit: tuple[Path, ...]) -> tuple[str, ...]:
    return tuple(sorted({name for path in unit for name in holders(live, path, apart_from=MANAGER)}))


def _differs(file: Json, live: Json, unit: tuple[Path, ...]) -> bool:
    """Whether the file says another thing than what is there; saying nothing is saying nothing else."""
    said = [leaf for path in unit if (value := value_at(file, path)) is not MISSING for leaf in leaves(value, path)]
    return any(value_at(live, path) != value for path, value in said)


def _kept(file: Json, live: Json, unit: tuple[Path, ...], owners: tuple[str, ...]) -> Iterator[Kept]:
    for path in unit:
        mine, theirs = value_at(file, path), value_at(live, path)
        if mine != theirs:
            yield Kept(written(path), theirs, mine, owners)


def _hold(body: Json, live: Json, unit: tuple[Path, ...]) -> None:
    """Let ``body`` say of the unit only what is there and ours: not naming it any more would remove it."""
    for path in unit:
        _set(body, path, MISSING)
        value = value_at(live, path)
        if value is MISSING:
            continue
        for leaf, here in leaves(value, path):
            if applied(live, leaf, MANAGER) and not holders(live, leaf, apart_from=MANAGER):
                _set(body, leaf, here)
    for path in unit:
        if len(path) > 2 and value_at(body, path[:-1]) == {}:
            _set(body, path[:-1], MISSING)


def _left_out(file: Json, live: Json) -> tuple[tuple[str, ...], tuple[tuple[str, tuple[str, ...]], ...]]:
    """The nodes that go because the file dropped them, and those that others brought."""
    removed: list[str] = []
    foreign: list[tuple[str, tuple[str, ...]]] = []
    for name in live["spec"]["nodes"]:
        if name in file["spec"]["nodes"]:
            continue
        path: Path = ("spec", "nodes", name)
        if applied(live, path, MANAGER):
            removed.append(name)
        else:
            foreign.append((name, holders(live, path)))
    return tuple(removed), tuple(foreign)


def _set(target: Mapping[str, Any], path: Path, value: Any) -> None:
    """Set, or with `MISSING` remove, the field at ``path``; objects on the way are made where they are needed."""
    *parents, last = path
    here: Any = target
    for key in parents:
        if not isinstance(here.get(key), dict):
            if value is MISSING:
                return
            here[key] = {}
        here = here[key]
    if value is MISSING:
        here.pop(last, None)
    else:
        here[last] = value
