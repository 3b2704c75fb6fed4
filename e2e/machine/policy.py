"""The agent that enforces NetworkPolicies on the node: kube-router's controller, in tables of its own.

It reads a whole table of the firewall, and writes it whole. What kube-proxy changed in between would be lost: a Service
that has endpoints again could go on refusing. The kernel has two firewalls, though, both of which a packet must pass.
kube-proxy uses the one that is called `iptables`; the agent gets the other.
"""

import contextlib
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from machine import host
from machine.layout import MachineError

#: By what `iptables --version` says in brackets: the programs of the other one.
OTHER: Mapping[str, str] = {"nf_tables": "iptables-legacy", "legacy": "iptables-nft"}
#: What the agent calls; Debian has them for both.
PROGRAMS = ("", "-save", "-restore")
#: Its sets of addresses; its chains are known by `host.OURS`.
SETS = re.compile(r"(inet6:)?KUBE-(SRC|DST)-\S+")


def other(version: str) -> str | None:
    """The iptables that is not the machine's own, None where that one is unknown.

    Args:
        version: What `iptables --version` says, such as `iptables v1.8.9 (nf_tables)`.
    """
    found = re.search(r"\((\S+)\)", version)
    return OTHER.get(found[1]) if found else None


def firewall() -> str | None:
    """The agent's iptables, None where the machine has no second one."""
    with contextlib.suppress(RuntimeError, FileNotFoundError):
        name = other(host.run("iptables", "--version"))
        if name is not None:
            host.run(name, "-S")
            return name
    return None


def link_tools(folder: Path, name: str) -> None:
    """Makes `folder`, in which `iptables` is the one called `name`. Raises MachineError where one of its is missing."""
    folder.mkdir(parents=True)
    for each in PROGRAMS:
        found = shutil.which(name + each, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
        if found is None:
            raise MachineError(f"{name}{each} is not here; install all of iptables, or use --no-policies")
        (folder / f"iptables{each}").symlink_to(found)


def our_sets(listed: str) -> list[str]:
    """The agent's sets in the output of `ipset list -name`."""
    return [name for name in listed.split() if SETS.fullmatch(name)]


def remove_sets() -> None:
    """After the chains that use them."""
    for name in sets():
        host.run("ipset", "destroy", name)


def sets() -> list[str]:
    """The agent's sets that are there now."""
    with contextlib.suppress(FileNotFoundError, RuntimeError):  # without the program, or without sets in the kernel
        return our_sets(host.run("ipset", "list", "-name"))
    return []


def command(binary: str, kubeconfig: Path, node: str, services: str, ready: str, tools: Path) -> Iterable[str]:
    """The agent's command line; `ready` is where it answers 200 as soon as it enforces."""
    return (
        binary,
        f"--kubeconfig={kubeconfig}",
        f"--node={node}",
        f"--services={services}",
        f"--ready={ready}",
        f"--tools={tools}",
    )
