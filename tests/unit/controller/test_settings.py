"""Settings: defaults, flags over variables, and every mistake named."""

from __future__ import annotations

import pytest

from servepipe_operator.controller.lease import LeaseTimes
from servepipe_operator.controller.settings import Settings, SettingsError, from_environment

NEEDED = {"SERVEPIPE_NAMESPACE": "system", "SERVEPIPE_INSTANCE": "operator-0"}


def test_only_what_is_needed_gives_the_defaults() -> None:
    assert from_environment(NEEDED) == Settings("system", "operator-0")


def test_all_can_be_set_and_flags_win() -> None:
    settings = from_environment(
        NEEDED
        | {
            "SERVEPIPE_WATCH_NAMESPACES": " a, b,a ,",
            "SERVEPIPE_DASHBOARD": "proxy",
            "SERVEPIPE_WORKERS": "3",
            "SERVEPIPE_STEADY_S": "",
            "SERVEPIPE_LEASE_DURATION_S": "60",
        },
        ["--workers", "4", "--lease-renew-s=7.5", "--cluster-domain", "example.internal."],
    )
    assert settings.watch_namespaces == ("a", "b")
    assert (settings.dashboard, settings.workers, settings.steady_s) == ("proxy", 4, 10.0)
    assert settings.lease == LeaseTimes(duration_s=60, renew_s=7.5)
    assert settings.cluster_domain == "example.internal"


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("NAMESPACE", "", "missing"),
        ("INSTANCE", "", "missing"),
        ("WATCH_NAMESPACES", "a,B", "DNS label"),
        ("INSTALLATION", "x" * 64, "DNS label"),
        ("DASHBOARD", "ssh", "one of service, pod-ip, proxy"),
        ("WORKERS", "0", "from 1 to 1000"),
        ("WORKERS", "²", "from 1 to 1000"),
        ("HTTP_PORT", "70000", "from 0 to 65535"),
        ("STEADY_S", "nan", "above 0"),
        ("RESYNC_S", "inf", "above 0"),
        ("CHANGING_S", "soon", "above 0"),
        ("LEASE_DURATION_S", "1.5", "whole number"),
        ("LEASE_MARGIN_S", "30", "do not fit"),
        ("API_TIMEOUT_S", "10", "less than SERVEPIPE_LEASE_MARGIN_S"),
    ],
)
def test_a_mistake_names_the_variable(variable: str, value: str, says: str) -> None:
    with pytest.raises(SettingsError) as raised:
        from_environment(NEEDED | {f"SERVEPIPE_{variable}": value})
    assert says in str(raised.value)
    assert ("SERVEPIPE_LEASE" if says == "do not fit" else f"SERVEPIPE_{variable}") in str(raised.value)


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(SettingsError) as raised:
        from_environment({"SERVEPIPE_WORKERS": "x", "SERVEPIPE_LEASE_RETRY_S": "y"})
    assert len(str(raised.value).splitlines()) == 4
