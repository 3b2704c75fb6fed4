"""The flags of Ray and Serve in a local run: servepipe's own, over them the user's shell, over both the resource.

The resource has the last word, as in a cluster: what its file says is what runs, whoever starts it. The shell counts
more than defaults, as somebody has set it; what it changes is said, as that may have been long ago. Files and ports are
the run's own whoever says otherwise: two Serves that share one take each other's requests.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from servepipe.errors import RunError
from servepipe.runtime.flags import CHANNEL, PLACES
from servepipe_operator.engine.state import Json
from servepipe_operator.objects.environment import switches

__all__ = ["Flags", "flags_of"]

WHERE = "spec.cluster.head.template"


@dataclass(frozen=True, slots=True)
class Flags:
    """What a resource says about them.

    Args:
        values: What counts, by name; None takes a variable out, so that Ray's or Serve's own default counts.
        unknown: Names of those whose values only a pod has (``valueFrom``).
        places: Names of those that are the run's own.
    """

    values: Mapping[str, str | None]
    unknown: tuple[str, ...] = ()
    places: tuple[str, ...] = ()

    def over(self, defaults: Mapping[str, str], shell: Mapping[str, str]) -> dict[str, str | None]:
        """The variables to set, and with None those to take out.

        Args:
            defaults: servepipe's own, with the files and ports of the run.
            shell: The environment that the run was started in.
        """
        return {**defaults, **_of_shell(defaults, shell), **self.values}

    def notices(self, defaults: Mapping[str, str], shell: Mapping[str, str]) -> Iterator[str]:
        """What people should know about them, a line each; arguments as for `over`."""
        if self.values:
            yield f"{WHERE} sets {_listed(self.values)}"
        others = {
            name: value
            for name, value in _of_shell(defaults, shell).items()
            if name not in self.values and value != defaults.get(name)
        }
        if others:
            yield f"the environment of this command sets {_listed(others)}"
        if self.unknown:
            yield f"left out, as only a pod has the values (valueFrom): {', '.join(self.unknown)} of {WHERE}"
        if self.places:
            yield f"left out, as a run has files and ports of its own: {', '.join(self.places)} of {WHERE}"


def flags_of(resource: Json) -> Flags:
    """Read them from a resource.

    Raises:
        RunError: A value is no text, which a cluster refuses, too.
    """
    cluster = resource["spec"].get("cluster") or {}
    found = switches((cluster.get("head") or {}).get("template") or {})
    places = {name for name in found if name in PLACES}
    unknown = {name for name, one in found.items() if "valueFrom" in one} - places
    values = {name: one.get("value") for name, one in found.items() if name not in places | unknown}
    for name, value in values.items():
        if not isinstance(value, str | None):
            raise RunError(
                f"The value of {name} is no text",
                where=WHERE,
                fix="Write it in quotes.",
            )
    return Flags(values, tuple(sorted(unknown)), tuple(sorted(places)))


def _of_shell(defaults: Mapping[str, str], shell: Mapping[str, str]) -> dict[str, str]:
    """What a shell says about what servepipe sets or reads; what else it says reaches Ray as it is."""
    ours = [CHANNEL, *(name for name in defaults if name.startswith("RAY_SERVE_") and name not in PLACES)]
    return {name: shell[name] for name in ours if name in shell}


def _listed(flags: Mapping[str, str | None]) -> str:
    """In a line, although one of servepipe's own has two."""
    return ", ".join(
        f"{name} (taken out)" if value is None else f"{name}={' '.join(value.split())}" for name, value in flags.items()
    )
