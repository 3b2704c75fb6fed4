"""One real cluster on this machine: up, loaded with images, disturbed, down."""

import contextlib
import ipaddress
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from bed.build import Binaries, with_node
from bed.client import Api, write_kubeconfig
from bed.control_plane import SERVICES, ControlPlane, Setup
from bed.processes import Process, free_ports, wait_for

from machine import archive, configs, host, packages, record
from machine.daemons import Daemons
from machine.down import down
from machine.layout import Layout, MachineError
from machine.record import Record

Say = Callable[[str], None]
HARDWARE_ADDRESS = "02:73:76:70:00:01"  # locally administered


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

    @classmethod
    def up(cls, folder: Path, say: Say = _print) -> "MachineCluster":
        """A new cluster in `folder`; a former one there is taken down first.

        What was begun is taken down again when this fails. Raises MachineError where the machine cannot have one, and
        BuildError, DeadlineError (what did not come in time, with the end of its log).
        """
        layout = Layout(folder)
        if sys.platform != "linux" or os.geteuid() != 0:
            raise MachineError("a cluster on this machine needs root on Linux; use another mode")
        if down(layout, say):
            say(f"machine: a former cluster in {folder} was taken down")
        packages.install(packages.NEEDED, say)
        if not host.load_bridge_filter():
            raise MachineError("the kernel has no br_netfilter, so pods could not reach Services; use another mode")
        refuse_where_taken(layout)
        binaries = with_node(say=say)
        started = time.monotonic()
        for path in (layout.folder, layout.logs, layout.plane, layout.config, layout.cni):
            path.mkdir(parents=True, exist_ok=True)
        noted = Record(record.boot_id(), layout.bridge, host.sysctls(), host.absent_outside())
        noted.save(layout.record)
        cluster = cls(layout, noted, binaries, say)
        try:
            cluster._start()
        except BaseException:
            say(f"machine: did not come up; logs in {layout.logs}")
            down(layout, say)
            raise
        say(f"machine: {layout.node} Ready after {time.monotonic() - started:.1f} s; KUBECONFIG={layout.kubeconfig}")
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
        env = {"HOME": str(self.folder), "PATH": "/usr/bin:/bin"}
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=timeout, env=env)
        if check:
            assert done.returncode == 0, f"kubectl {' '.join(arguments)} failed\n{done.stdout}{done.stderr}"
        return done

    def load_image(self, path: Path) -> None:
        """Makes the images of an OCI archive known to the node, under the names that the archive gives them.

        Pods need `imagePullPolicy: Never` or `IfNotPresent` for them.
        """
        self._ctr("images", "import", str(path))

    def images(self) -> list[str]:
        """The names of all images of the node."""
        return [name for name in self._ctr("images", "list", "--quiet").split() if not name.startswith("sha256:")]

    def stop_daemon(self, name: str) -> None:
        """Ends one as a service manager does: `containerd`, `coredns`, `kubelet`, ...; for faults."""
        self._daemons.end(name)

    def start_daemon(self, name: str) -> Process:
        """Starts it again with the same command line; does not wait until it is ready."""
        return self._daemons.start_again(name)

    def restart_containerd(self) -> None:
        """As its service manager would; containers go on meanwhile. Returns when it answers again."""
        self.stop_daemon("containerd")
        self._wait_for_containerd(self.start_daemon("containerd"))

    def _ctr(self, *arguments: str) -> str:
        return host.run("ctr", f"--address={self.layout.socket}", "--namespace=k8s.io", *arguments)

    # -- up

    def _start(self) -> None:
        layout, say = self.layout, self._say
        say(f"machine: bridge {layout.bridge} with {layout.address}, network of pods {layout.pods}")
        self._make_bridge()
        say("machine: etcd, API server and controller-manager")
        setup = Setup(layout.address, "Node,RBAC", "*", lambda name, argv, _: self._made(name, argv))
        plane = ControlPlane(layout.plane, self._binaries, setup)
        try:
            self._write_configs(plane)
            containerd = self._daemons.start("containerd", _program("containerd"), f"--config={self._config_toml}")
            plane.start()
            self._let_the_api_server_reach_kubelets(plane.api)
            self._wait_for_containerd(containerd)
            pod = layout.folder / "pod.tar"
            archive.write(pod, configs.PAUSE_IMAGE, Path(self._binaries["pod"]))
            self.load_image(pod)
            say("machine: scheduler, kubelet, kube-proxy and CoreDNS")
            self._start_node(plane)
        finally:
            plane.api.close()

    def _made(self, name: str, argv: list[str]) -> Process:
        return self._daemons.make(name, argv, self.layout.logs / f"{name}.log")

    def _make_bridge(self) -> None:
        layout = self.layout
        # Left to itself a bridge takes the lowest hardware address on it, so another one when a pod comes or goes; then
        # the others reach neither DNS nor the API server for the ten seconds that they believe in the former one.
        host.run("ip", "link", "add", layout.bridge, "address", HARDWARE_ADDRESS, "type", "bridge")
        host.run("ip", "address", "add", f"{layout.address}/{_prefix(layout)}", "dev", layout.bridge)
        host.run("ip", "link", "set", layout.bridge, "up")
        for setting in (host.FORWARD, host.BRIDGE_FILTER):
            host.switch_on(setting)

    @property
    def _config_toml(self) -> Path:
        return self.layout.config / "containerd.toml"

    def _write_configs(self, plane: ControlPlane) -> None:
        layout = self.layout
        serving = plane.issuer.issue("kubelet-serving", layout.node, addresses=(layout.address,))
        self._config_toml.write_text(configs.containerd(layout))
        (layout.cni / "10-pods.conflist").write_text(configs.cni(layout))
        (layout.config / "kubelet.yaml").write_text(configs.kubelet(layout, plane.authority, serving))
        (layout.config / "resolv.conf").write_text(f"nameserver {layout.address}\n")

    def _let_the_api_server_reach_kubelets(self, api: Api) -> None:
        binding = {
            "metadata": {"name": "apiserver-to-kubelets"},
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": "ClusterRole",
                "name": "system:kubelet-api-admin",
            },
            "subjects": [{"kind": "User", "name": "kube-apiserver-kubelet-client"}],
        }
        api.create("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", binding)

    def _wait_for_containerd(self, process: Process) -> None:
        def answers() -> bool:
            if not process.running():
                raise RuntimeError(process.tail())
            try:
                return bool(self._ctr("version"))
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                raise AssertionError(str(error)) from error

        wait_for(f"containerd at {self.layout.socket}", answers, 30, process.tail, pause=0.1)

    def _start_node(self, plane: ControlPlane) -> None:
        layout, start = self.layout, self._daemons.start
        scheduler_port, proxy_health, proxy_metrics, dns_ready = free_ports(4)
        user = f"system:node:{layout.node}"
        certificate, key = plane.issuer.issue("node", user, groups=("system:nodes",))
        node = write_kubeconfig(
            layout.plane / "node.kubeconfig",
            plane.url,
            plane.authority,
            {"client-certificate": str(certificate), "client-key": str(key)},
        )
        kubelet = start(
            "kubelet",
            self._binaries["kubelet"],
            f"--config={layout.config / 'kubelet.yaml'}",
            f"--kubeconfig={node}",
            f"--hostname-override={layout.node}",
            f"--node-ip={layout.address}",
            f"--root-dir={layout.kubelet}",
            f"--cert-dir={layout.kubelet / 'pki'}",
        )
        scheduler = start(
            "kube-scheduler",
            self._binaries["kube-scheduler"],
            f"--kubeconfig={layout.kubeconfig}",
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
            f"--secure-port={scheduler_port}",
            f"--cert-dir={layout.plane}",
        )
        proxy = start(
            "kube-proxy",
            self._binaries["kube-proxy"],
            f"--kubeconfig={layout.kubeconfig}",
            f"--hostname-override={layout.node}",
            "--proxy-mode=iptables",
            f"--cluster-cidr={layout.pods}",
            # Limits of connection tracking are the machine's, not ours to change.
            "--conntrack-max-per-core=0",
            "--conntrack-tcp-timeout-established=0",
            "--conntrack-tcp-timeout-close-wait=0",
            f"--healthz-bind-address=127.0.0.1:{proxy_health}",
            f"--metrics-bind-address=127.0.0.1:{proxy_metrics}",
        )
        corefile = layout.config / "Corefile"
        corefile.write_text(configs.coredns(layout, layout.kubeconfig, dns_ready))
        dns = start("coredns", self._binaries["coredns"], "-conf", str(corefile))
        self._wait_for(f"node {layout.node} to be Ready", kubelet, lambda: _is_ready(plane.api, layout.node), 90)
        self._wait_for("CoreDNS to be ready", dns, lambda: _answers(f"http://127.0.0.1:{dns_ready}/ready"), 60)
        self._wait_for("kube-proxy's rules", proxy, lambda: _answers(f"http://127.0.0.1:{proxy_health}/healthz"), 60)
        self._wait_for("the scheduler", scheduler, scheduler.running, 10)

    def _wait_for(self, what: str, process: Process, check: Callable[[], bool], timeout: float) -> None:
        def checked() -> bool:
            if not process.running():
                raise MachineError(process.tail())
            return check()

        wait_for(what, checked, timeout, process.tail, pause=0.1)


def refuse_where_taken(layout: Layout) -> None:
    """Raises MachineError where the machine has already what the cluster would make, or another Kubernetes."""
    network, services = ipaddress.ip_network(layout.pods), ipaddress.ip_network(SERVICES)
    for link in host.interfaces():
        if link["ifname"] == layout.bridge:
            raise MachineError(
                f"interface {layout.bridge} is there: another cluster is up, or one was not taken down; "
                f"end it with its folder (`python e2e/machine down --folder ...`), or `ip link delete {layout.bridge}`"
            )
        for address in link.get("addr_info", ()):
            local = ipaddress.ip_address(address["local"])
            if any(local in taken for taken in (network, services)):
                raise MachineError(
                    f"{link['ifname']} has {local}, which lies in {network} or {services} of the cluster"
                )
    if host.pods_cgroups():
        where = ", ".join(map(str, host.pods_cgroups()))
        raise MachineError(f"another kubelet works or worked on this machine: its control groups {where} are there")
    for name in host.firewalls():
        chains = host.our_chains(host.run(f"{name}-save"))
        if chains:
            raise MachineError(
                f"another Kubernetes works or worked on this machine: {name} has {', '.join(chains[:5])}"
            )


def _prefix(layout: Layout) -> int:
    return ipaddress.ip_network(layout.pods).prefixlen


def _program(name: str) -> str:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") or name


def _is_ready(api: Api, node: str) -> bool:
    found: dict[str, Any] = api.find(f"/api/v1/nodes/{node}") or {}
    conditions = found.get("status", {}).get("conditions", ())
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def _answers(url: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(url, trust_env=False).status_code == 200
    return False
