"""The agent for NetworkPolicies gets the firewall that kube-proxy does not use."""

from pathlib import Path

import pytest
from machine import policy
from machine.layout import MachineError


@pytest.mark.parametrize(
    ("version", "other"),
    [
        ("iptables v1.8.9 (nf_tables)\n", "iptables-legacy"),
        ("iptables v1.8.9 (legacy)\n", "iptables-nft"),
        ("iptables v1.6.1\n", None),
        ("", None),
    ],
)
def test_it_is_the_other_of_the_two(version: str, other: str | None) -> None:
    assert policy.other(version) == other


def test_in_its_folder_the_other_has_the_name_of_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = tmp_path / "sbin"
    programs.mkdir()
    for each in policy.PROGRAMS:
        (programs / f"iptables-other{each}").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(programs))
    policy.link_tools(tmp_path / "tools", "iptables-other")
    links = {path.name: path.readlink().name for path in (tmp_path / "tools").iterdir()}
    assert links == {
        "iptables": "iptables-other",
        "iptables-save": "iptables-other-save",
        "iptables-restore": "iptables-other-restore",
    }


def test_a_program_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="iptables-nowhere is not here"):
        policy.link_tools(tmp_path / "tools", "iptables-nowhere")


def test_only_its_own_sets_of_addresses_are_removed() -> None:
    listed = "KUBE-SRC-ABC\ninet6:KUBE-DST-DEF\nKUBE-LOOP-BACK\nothers\nMY-KUBE-SRC-1\n"
    assert policy.our_sets(listed) == ["KUBE-SRC-ABC", "inet6:KUBE-DST-DEF"]
