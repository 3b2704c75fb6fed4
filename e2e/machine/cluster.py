"""One real cluster on this machine: up, loaded with images, disturbed, down."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from bed.build import Binaries, with_node
from bed.control_plane import run_kubectl
from bed.processes import Process

from machine import host, packages, policy, record
from machine.containerd import Containerd
from machine.daemons import Daemons
from machine.down import down
from machine.layout import Layout, MachineError
from machine.record import Record
from machine.start import refuse_where_taken, start

Say = Callable[[str], None]


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class MachineCluster:
    """A cluster that is up; `up` makes one, `attach` finds one that another process made.

    Attributes:
        layout: Its paths, addresses and names.
        kubeconfig: Of its administrator.
    """

    def __init__(self, layout: Layout, noted: Record, binaries: Binaries, say: Say) -> None:
        self.layout, self.kubeconfig = layout, layout.kubeconfig
        self._binaries, self._say = binaries, say
        self._daemons = Daemons(layout, noted)
        self._containerd = Containerd(layout, self._daemons)

    @classmethod
    def up(cls, folder: Path, say: Say = _print, *, policies: bool = True) -> "MachineCluster":
        """A new cluster in `folder`; a former one there is taken down first.

        With `policies` an agent enforces NetworkPolicies where the kernel can; where it cannot, a line says so.

        What was begun is taken down again when this fails. Raises MachineError where the machine cannot have one, and
        BuildError, DeadlineError (what did not come in time, with the end of its log).
        """
        layout = Layout(folder)
        if sys.platform != "linux" or os.geteuid() != 0:
            raise MachineError("a cluster on this machine needs root on Linux; use another mode")
        if down(layout, say):
            say(f"machine: a former cluster in {folder} was taken down")
        packages.install({**packages.NEEDED, **(packages.FOR_POLICIES if policies else {})}, say)
        firewall = policy.firewall() if policies else None
        if policies and firewall is None:
            say("machine: NetworkPolicies are not enforced, as the kernel has no second firewall beside iptables's")
        if not host.load_bridge_filter():
            raise MachineError("the kernel has no br_netfilter, so pods could not reach Services; use another mode")
        refuse_where_taken(layout)
        binaries = with_node(say=say)
        begun = time.monotonic()
        for path in (layout.folder, layout.logs, layout.plane, layout.config, layout.cni):
            path.mkdir(parents=True, exist_ok=True)
        noted = Record(record.boot_id(), layout.bridge, host.sysctls(), host.absent_outside())
        noted.save(layout.record)
        cluster = cls(layout, noted, binaries, say)
        try:
            start(layout, cluster._daemons, binaries, say, firewall)
        except BaseException:
            say(f"machine: did not come up; logs in {layout.logs}")
            down(layout, say)
            raise
        say(f"machine: {layout.node} Ready after {time.monotonic() - begun:.1f} s; KUBECONFIG={layout.kubeconfig}")
        return cluster

    @classmethod
    def attach(cls, folder: Path, say: Say = _print) -> "MachineCluster":
        """The cluster in `folder`. Raises MachineError where none is up."""
        layout = Layout(folder)
        noted = record.load(layout.record)
        if noted is None or noted.boot != record.boot_id():
            raise MachineError(f"no cluster is up in {folder}")
        return cls(layout, noted, with_node(say=say), say)

    def down(self) -> None:
        """Ends and undoes everything; logs stay in `layout.logs`."""
        down(self.layout, self._say)

    # -- what tests need

    @property
    def node(self) -> str:
        return self.layout.node

    @property
    def folder(self) -> Path:
        return self.layout.folder

    def pid(self, name: str) -> int:
        """The process of a daemon: `coredns`, `kube-apiserver`, ... Raises MachineError where it does not run."""
        return self._daemons.pid(name)

    def kubectl(
        self, *arguments: str, stdin: str | None = None, check: bool = True, timeout: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """Runs kubectl as the administrator; `check` makes a failure an AssertionError with its output."""
        command = [self._binaries["kubectl"], f"--kubeconfig={self.kubeconfig}", *arguments]
        return run_kubectl(command, self.folder, stdin=stdin, check=check, timeout=timeout)

    def load_image(self, path: Path) -> None:
        """Makes the images of an OCI archive known to the node, under the names that the archive gives them.

        Pods need `imagePullPolicy: Never` or `IfNotPresent` for them.
        """
        self._containerd.load_image(path)

    def images(self) -> list[str]:
        """The names of all images of the node."""
        return self._containerd.images()

    def make_process(self, name: str, argv: list[str], log: Path) -> Process:
        """One that belongs to the cluster, not yet started: `down` ends it, also when it was started elsewhere."""
        return self._daemons.make(name, argv, log)

    def stop_daemon(self, name: str) -> None:
        """Ends one as a service manager does: `containerd`, `coredns`, `kubelet`, ...; for faults."""
        self._daemons.end(name)

    def start_daemon(self, name: str) -> Process:
        """Starts it again with the same command line; does not wait until it is ready."""
        return self._daemons.start_again(name)

    def restart_containerd(self) -> None:
        """As its service manager would; containers go on meanwhile. Returns when it answers again."""
        self.stop_daemon("containerd")
        self.start_daemon("containerd")
        self._containerd.wait_until_it_answers()
