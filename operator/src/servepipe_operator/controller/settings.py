"""What can be set from outside: environment variables, each with a flag of the same name that wins.

``SERVEPIPE_WATCH_NAMESPACES`` is ``--watch-namespaces``, and so on. Whatever is wrong is told all at once, each with
the variable's name and the value it had.
"""

from __future__ import annotations

import argparse
import ipaddress
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from servepipe import __ray_version__, __version__
from servepipe_operator.adapters.dashboard import DASHBOARD_WAYS, DashboardWay
from servepipe_operator.controller.lease import LeaseTimes
from servepipe_operator.controller.logs import LEVELS
from servepipe_operator.engine.versions import version_problem

__all__ = ["Settings", "SettingsError", "from_environment"]

T = TypeVar("T")
PREFIX = "SERVEPIPE_"
DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


class SettingsError(Exception):
    """One or more settings are wrong; one line for each."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How this operator runs.

    Args:
        namespace: Its own, where the Lease is.
        instance: Its pod's name, for the Lease and Events.
        installation: Its name; pipelines that name another are left alone.
        watch_namespaces: Which to look at; empty means all.
        dashboard: How Ray's dashboard is reached.
        cluster_domain: Of the cluster's DNS.
        workers: Pipelines reconciled at once.
        steady_s: Between looks when nothing changes.
        changing_s: Between looks in the middle of a change.
        resync_s: After which all pipelines are listed and looked at anew.
        api_per_s: Requests per second to the API server; bursts may have twice as many. A net for mistakes: what keeps
            a busy server from being overrun is that `Kube` has few requests under way, and its own fairness.
        api_timeout_s: For one request.
        look_s: The longest that one look at a pipeline may take; then it is cancelled and tried again later.
        stop_s: How long looks that are under way may go on after SIGTERM.
        http_host: The address to listen on for /healthz, /readyz and /metrics; empty means all.
        http_port: Likewise, the port; 0 means any.
        ray_version: Of pipelines that name none.
        runtime_image: Of heads, and of pods for which no image is named; ``{ray_version}`` stands for theirs.
        pod_labels: By which NetworkPolicies let this operator's pods in.
        api_server_from: Address ranges from which the API server's proxy comes, let in where `dashboard` is ``proxy``.
        log_level: One of `logs.LEVELS`.
        lease: Leader election.
    """

    namespace: str
    instance: str
    installation: str = "servepipe"
    watch_namespaces: tuple[str, ...] = ()
    dashboard: DashboardWay = "service"
    cluster_domain: str = "cluster.local"
    workers: int = 64
    steady_s: float = 10.0
    changing_s: float = 2.0
    resync_s: float = 300.0
    api_per_s: float = 500.0
    api_timeout_s: float = 8.0
    look_s: float = 120.0
    stop_s: float = 15.0
    http_host: str = ""
    http_port: int = 8080
    ray_version: str = __ray_version__
    runtime_image: str = f"servepipe/runtime:{__version__}-ray{{ray_version}}"
    pod_labels: tuple[tuple[str, str], ...] = (("app.kubernetes.io/name", "servepipe-operator"),)
    api_server_from: tuple[str, ...] = ()
    log_level: str = "info"
    lease: LeaseTimes = field(default_factory=LeaseTimes)


def _text(value: str) -> str:
    if not DNS_LABEL.fullmatch(value):
        raise ValueError("has to be a DNS label: a-z, 0-9 and -, at most 63 characters")
    return value


def _names(value: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_text(name.strip()) for name in value.split(",") if name.strip()))


def _domain(value: str) -> str:
    return ".".join(_text(part) for part in value.strip(".").split("."))


def _way(value: str) -> DashboardWay:
    for way in DASHBOARD_WAYS:
        if way == value:
            return way
    raise ValueError(f"has to be one of {', '.join(DASHBOARD_WAYS)}")


def _level(value: str) -> str:
    if value not in LEVELS:
        raise ValueError(f"has to be one of {', '.join(LEVELS)}")
    return value


def _address(value: str) -> str:
    try:
        return str(ipaddress.ip_address(value))
    except ValueError:
        raise ValueError("has to be an IP address") from None


def _image(value: str) -> str:
    try:
        value.format(ray_version="")
    except (LookupError, ValueError):
        raise ValueError("may hold {ray_version} and no other brace") from None
    return value


def _version(value: str) -> str:
    if told := version_problem(value):
        raise ValueError(f"does not do: {told}")
    return value


def _labels(value: str) -> tuple[tuple[str, str], ...]:
    found = []
    for part in filter(None, (part.strip() for part in value.split(","))):
        name, equals, text = part.partition("=")
        if not (name and equals):
            raise ValueError("has to be labels such as a=b,c=d")
        found.append((name, text))
    return tuple(found)


def _ranges(value: str) -> tuple[str, ...]:
    try:
        return tuple(str(ipaddress.ip_network(part.strip())) for part in value.split(",") if part.strip())
    except ValueError as error:
        raise ValueError(f"has to be address ranges separated by commas: {error}") from None


def _whole(least: int, most: int) -> Callable[[str], int]:
    def read(value: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", value) or not least <= int(value) <= most:
            raise ValueError(f"has to be a whole number from {least} to {most}")
        return int(value)

    return read


def _seconds(value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise ValueError("has to be a number above 0")
    return number


# Name, reader, help. The names are those of the dataclasses.
SETTINGS: tuple[tuple[str, Callable[[str], Any], str], ...] = (
    ("namespace", _text, "the operator's own namespace, where its Lease is"),
    ("instance", _domain, "the operator's pod"),
    ("installation", _text, "pipelines that name another installation are left alone"),
    ("watch_namespaces", _names, "separated by commas; empty: all"),
    ("dashboard", _way, f"how Ray's dashboard is reached: {', '.join(DASHBOARD_WAYS)}"),
    ("cluster_domain", _domain, "of the cluster's DNS"),
    ("ray_version", _version, "of pipelines that name none"),
    ("runtime_image", _image, "of heads, and of pods for which no image is named; may hold {ray_version}"),
    ("pod_labels", _labels, "of this operator's pods: name=value separated by commas"),
    ("api_server_from", _ranges, "address ranges of the API server, for --dashboard=proxy"),
    ("workers", _whole(1, 1000), "pipelines reconciled at once"),
    ("steady_s", _seconds, "seconds between looks when nothing changes"),
    ("changing_s", _seconds, "seconds between looks in the middle of a change"),
    ("resync_s", _seconds, "seconds after which everything is looked at anew"),
    ("api_per_s", _seconds, "requests per second to the API server"),
    ("api_timeout_s", _seconds, "seconds for one request to the API server"),
    ("look_s", _seconds, "seconds that one look at a pipeline may take"),
    ("stop_s", _seconds, "seconds that looks under way may go on after SIGTERM"),
    ("http_host", _address, "IP address of /healthz, /readyz and /metrics; empty: all"),
    ("http_port", _whole(0, 65535), "port of /healthz, /readyz and /metrics; 0: any"),
    ("log_level", _level, f"one of {', '.join(LEVELS)}"),
)
LEASE_SETTINGS: tuple[tuple[str, Callable[[str], Any], str], ...] = (
    ("duration_s", _whole(1, 3600), "seconds after which a Lease that is not renewed may be taken over"),
    ("margin_s", _seconds, "seconds by which the right to write ends earlier"),
    ("renew_s", _seconds, "seconds between renewals"),
    ("retry_s", _seconds, "seconds between looks of a candidate"),
)
REQUIRED = ("namespace", "instance")


def from_environment(environment: Mapping[str, str], arguments: Sequence[str] = ()) -> Settings:
    """The settings; a variable that is empty counts as not set.

    Raises:
        SettingsError: With one line for each that is wrong or missing.
        SystemExit: An unknown flag, or ``--help`` (argparse).
    """
    parser = _parser()
    flags = vars(parser.parse_args(arguments))
    problems: list[str] = []

    def read(wanted: tuple[tuple[str, Callable[[str], Any], str], ...], prefix: str) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name, reader, _ in wanted:
            variable = PREFIX + (prefix + name).upper()
            raw = flags[prefix + name] if flags[prefix + name] is not None else environment.get(variable, "")
            if not raw:
                if name in REQUIRED:
                    problems.append(f"{variable} (or {_flag(name)}) is missing: {dict(_HELP)[name]}")
                continue
            try:
                values[name] = reader(raw)
            except ValueError as error:
                problems.append(f"{variable} (or {_flag(prefix + name)}) is {raw!r}: it {error}")
        return values

    values = read(SETTINGS, "")
    lease = read(LEASE_SETTINGS, "lease_")
    if not problems:
        try:
            settings = Settings(**values, lease=LeaseTimes(**lease))
        except ValueError as error:
            problems.append(f"{PREFIX}LEASE_*: {error}")
        else:
            if settings.api_timeout_s < settings.lease.margin_s:
                return settings
            problems.append(
                f"{PREFIX}API_TIMEOUT_S is {settings.api_timeout_s}: it has to be less than {PREFIX}LEASE_MARGIN_S, "
                f"{settings.lease.margin_s}, so that no write outlives the Lease"
            )
    raise SettingsError("\n".join(problems))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="servepipe-operator",
        description="Runs ServePipelines: makes their RayClusters and keeps their models deployed.",
        epilog="API server and login are those of the pod's ServiceAccount, outside a cluster those of KUBECONFIG.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"servepipe {__version__}")
    defaults = {one.name: one.default for one in fields(Settings)}
    leases = {one.name: one.default for one in fields(LeaseTimes)}
    for prefix, wanted, known in (("", SETTINGS, defaults), ("lease_", LEASE_SETTINGS, leases)):
        for name, _, text in wanted:
            default = known[name]
            shown = "required" if name in REQUIRED else f"default: {_written(default)}" if default else "optional"
            parser.add_argument(
                _flag(prefix + name),
                help=f"{text} [${PREFIX}{(prefix + name).upper()}; {shown}]",
                metavar=name.rpartition("_")[2].upper() if name.endswith(("_s", "_port", "_host")) else "VALUE",
                dest=prefix + name,
            )
    return parser


_HELP = tuple((name, text) for name, _, text in SETTINGS)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _written(value: Any) -> str:
    """A default as one would give it."""
    return ",".join(f"{name}={text}" for name, text in value) if isinstance(value, tuple) else str(value)
