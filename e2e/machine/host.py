"""The machine as it is: mounts, interfaces, firewall chains, control groups, settings; and how each is undone."""

import contextlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from machine.configs import NETWORK

TABLES = ("filter", "nat", "mangle", "raw")
#: Chains that kubelet, kube-proxy, the CNI plug-ins and the agent for NetworkPolicies make.
OURS = re.compile(r"(KUBE|CNI)-\S+")
CGROUPS = Path("/sys/fs/cgroup")
#: kubelet's control group, in which all containers are.
PODS_CGROUP = "kubepods"
SYSCTLS = Path("/proc/sys")
#: Rules of the firewall hold also between two pods of the bridge: else the answer of a Service, which goes to the pod
#: without them, has the address of a pod that was not asked.
BRIDGE_FILTER = "net/bridge/bridge-nf-call-iptables"
FORWARD = "net/ipv4/ip_forward"
#: What kubelet, kube-proxy and the bridge plug-in set, and what they need.
CHANGED_SYSCTLS = (
    BRIDGE_FILTER,
    FORWARD,
    "net/ipv4/conf/all/route_localnet",
    "net/ipv6/conf/all/forwarding",
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
)
#: What the daemons make outside the folder, whatever they are told.
OUTSIDE = (
    "/run/containerd",
    "/run/xtables.lock",
    "/run/netns",
    "/var/lib/cni",
    "/var/lib/cni/results",
    "/var/lib/kubelet",
    "/var/lib/kubelet/device-plugins",
    "/var/log/containers",
    "/var/log/pods",
    "/opt/containerd",
    "/opt/cni",
)


def run(*argv: str, stdin: str | None = None, check: bool = True, timeout: float = 60.0) -> str:
    """The output of a command; where it fails, RuntimeError with what it said."""
    path = f"{os.environ.get('PATH', '/usr/bin:/bin')}:/usr/sbin:/sbin"
    done = subprocess.run(
        argv, input=stdin, capture_output=True, text=True, timeout=timeout, env={**os.environ, "PATH": path}
    )
    if check and done.returncode != 0:
        raise RuntimeError(f"`{' '.join(argv)}` ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout


# -- mounts


def mounts_below(folder: Path, mounts: str) -> list[str]:
    """Mount points in `folder`, the last mounted first, from the text of /proc/mounts."""
    points = [_unescaped(line.split(" ")[1]) for line in mounts.splitlines()]
    return [point for point in reversed(points) if Path(point).is_relative_to(folder)]


def _unescaped(path: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), path)


def unmount_below(folder: Path) -> None:
    """Raises RuntimeError where a mount stays: then nothing in `folder` may be removed, for it is somebody else's."""
    for point in mounts_below(folder, Path("/proc/mounts").read_text()):
        run("umount", "--lazy", point, check=False)  # may have gone with another
    left = mounts_below(folder, Path("/proc/mounts").read_text())
    if left:
        raise RuntimeError(f"could not unmount {', '.join(left)}; unmount them and call down again")


# -- interfaces


def interfaces() -> list[dict[str, Any]]:
    """As `ip -j address` says."""
    found: list[dict[str, Any]] = json.loads(run("ip", "-j", "address"))
    return found


def remove_bridge(bridge: str) -> None:
    """And the interfaces of pods that are on it."""
    found = json.loads(run("ip", "-j", "link"))
    for link in found:
        if link.get("master") == bridge:
            run("ip", "link", "delete", link["ifname"], check=False)  # goes by itself when its pod's end goes
    if any(link["ifname"] == bridge for link in found):
        run("ip", "link", "delete", bridge)


# -- firewall


def our_chains(saved: str) -> list[str]:
    """The names of our chains in the output of iptables-save."""
    return [found[1] for found in re.finditer(r"^:(\S+) ", saved, re.MULTILINE) if OURS.fullmatch(found[1])]


def removal(table: str, saved: str) -> str:
    """Input of `iptables-restore --noflush` that takes our chains out of a table, and every rule that leads to them.

    Args:
        saved: The output of `iptables-save -t` for the table.
    """
    chains = our_chains(saved)
    if not chains:
        return ""
    lines = [f"*{table}", *(f":{chain} - [0:0]" for chain in chains)]  # known and emptied
    for line in saved.splitlines():
        words = line.split()
        if words[:1] == ["-A"] and words[1] not in chains and any(word in chains for word in _targets(words)):
            lines.append("-D" + line.removeprefix("-A"))
    lines += [f"-X {chain}" for chain in chains]
    return "\n".join([*lines, "COMMIT", ""])


def _targets(words: Sequence[str]) -> Iterable[str]:
    return (words[i + 1] for i, word in enumerate(words[:-1]) if word in ("-j", "-g"))


def firewalls() -> list[str]:
    """Those that work here: of both families, and of both kinds that a kernel may have; one of them has two names."""
    found = []
    for name in ("iptables", "ip6tables", "iptables-legacy", "iptables-nft"):
        with contextlib.suppress(RuntimeError, FileNotFoundError):
            run(f"{name}-save")
            found.append(name)
    return found


def remove_chains() -> None:
    for name in firewalls():
        if not our_chains(run(f"{name}-save")):
            continue  # asked for by its name, a table would come to be
        for table in TABLES:
            saved = run(f"{name}-save", "-t", table, check=False)
            commands = removal(table, saved)
            if commands:
                run(f"{name}-restore", "--noflush", stdin=commands)


# -- control groups


def pods_cgroups() -> list[Path]:
    """kubelet's group in each hierarchy, one on cgroup v2."""
    return [path for path in (CGROUPS / PODS_CGROUP, *CGROUPS.glob(f"*/{PODS_CGROUP}")) if path.is_dir()]


def pids_of_pods() -> set[int]:
    found: set[int] = set()
    for group in pods_cgroups():
        for path in group.rglob("cgroup.procs"):
            with contextlib.suppress(OSError):  # the group goes with its container
                found.update(map(int, path.read_text().split()))
    found.discard(0)  # one that this process may not see; as an argument of kill it would mean ourselves
    return found


def remove_cgroups() -> None:
    """Only empty ones can be removed, the innermost first."""
    for group in pods_cgroups():
        inner = sorted((path for path in group.rglob("*") if path.is_dir()), reverse=True)
        for path in (*inner, group):
            with contextlib.suppress(FileNotFoundError):
                path.rmdir()


# -- kernel settings and files


def sysctls() -> dict[str, str]:
    """What is now, of those that are going to be changed."""
    found = {}
    for name in CHANGED_SYSCTLS:
        with contextlib.suppress(OSError):
            found[name] = (SYSCTLS / name).read_text().strip()
    return found


def load_bridge_filter() -> bool:
    """Whether the kernel has `BRIDGE_FILTER`, after its module was loaded where it is one."""
    if not (SYSCTLS / BRIDGE_FILTER).exists():
        with contextlib.suppress(FileNotFoundError):
            run("modprobe", "br_netfilter", check=False)
    return (SYSCTLS / BRIDGE_FILTER).exists()


def switch_on(name: str) -> None:
    """A setting that is 0 or 1."""
    path = SYSCTLS / name
    if path.read_text().strip() != "1":
        path.write_text("1")


def restore(before: Mapping[str, str]) -> None:
    now = sysctls()
    for name, value in before.items():
        if now.get(name, value) != value:
            (SYSCTLS / name).write_text(value)


def absent_outside() -> list[str]:
    return [path for path in OUTSIDE if not Path(path).exists()]


def remove_outside(absent: Iterable[str], folder: Path, root: Path = Path("/")) -> None:
    """What was not there before goes; of what was, only what leads into `folder` or is of our network.

    Args:
        root: Where the paths of `OUTSIDE` begin.
    """
    results = root / "var/lib/cni/results"
    for result in results.glob(f"{NETWORK}-*-eth0"):
        pod = result.name.removeprefix(f"{NETWORK}-").removesuffix("-eth0")
        for path in (result, *results.glob(f"*-{pod}-lo")):
            remove(path)
    gone = set(absent)
    for each in OUTSIDE:
        path = root / each.lstrip("/")
        if each in gone:
            remove(path)
        elif path.is_dir():
            for link in path.iterdir():
                if link.is_symlink() and link.readlink().is_relative_to(folder):
                    link.unlink()


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
