"""What `up` starts, in its order, and what it waits for."""

import contextlib
import ipaddress
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from bed.build import Binaries
from bed.client import Api, write_kubeconfig
from bed.control_plane import SERVICES, ControlPlane, Setup
from bed.processes import Process, free_ports, wait_for

from machine import archive, configs, host, policy
from machine.containerd import Containerd
from machine.daemons import Daemons
from machine.layout import Layout, MachineError

Say = Callable[[str], None]
HARDWARE_ADDRESS = "02:73:76:70:00:01"  # locally administered


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


def start(layout: Layout, daemons: Daemons, binaries: Binaries, say: Say, firewall: str | None = None) -> None:
    """Everything of the cluster; returns when pods can be created and run.

    Args:
        firewall: The iptables of the agent that enforces NetworkPolicies, None for no agent.

    Raises MachineError where a daemon ended, and DeadlineError, both with the end of its log.
    """
    say(f"machine: bridge {layout.bridge} with {layout.address}, network of pods {layout.pods}")
    _make_bridge(layout)
    say("machine: etcd, API server, controller-manager and containerd")
    setup = Setup(
        layout.address, "Node,RBAC", "*", lambda name, argv, _: daemons.make(name, argv, layout.logs / f"{name}.log")
    )
    plane = ControlPlane(layout.plane, binaries, setup)
    containerd = Containerd(layout, daemons)
    try:
        _write_configs(layout, plane)
        containerd.start()
        plane.start()
        _let_the_api_server_reach_kubelets(plane.api)
        containerd.wait_until_it_answers()
        pod = layout.folder / "pod.tar"
        archive.write(pod, configs.PAUSE_IMAGE, Path(binaries["pod"]))
        containerd.load_image(pod)
        say("machine: scheduler, kubelet, kube-proxy and CoreDNS")
        _start_node(layout, daemons, binaries, plane, firewall)
    finally:
        plane.api.close()


def _make_bridge(layout: Layout) -> None:
    prefix = ipaddress.ip_network(layout.pods).prefixlen
    # Left to itself a bridge takes the lowest hardware address on it, so another one when a pod comes or goes; then
    # the others reach neither DNS nor the API server for the ten seconds that they believe in the former one.
    host.run("ip", "link", "add", layout.bridge, "address", HARDWARE_ADDRESS, "type", "bridge")
    host.run("ip", "address", "add", f"{layout.address}/{prefix}", "dev", layout.bridge)
    host.run("ip", "link", "set", layout.bridge, "up")
    for setting in (host.FORWARD, host.BRIDGE_FILTER):
        host.switch_on(setting)


def _write_configs(layout: Layout, plane: ControlPlane) -> None:
    serving = plane.issuer.issue("kubelet-serving", layout.node, addresses=(layout.address,))
    (layout.cni / "10-pods.conflist").write_text(configs.cni(layout))
    (layout.config / "kubelet.yaml").write_text(configs.kubelet(layout, plane.authority, serving))
    (layout.config / "resolv.conf").write_text(f"nameserver {layout.address}\n")


def _let_the_api_server_reach_kubelets(api: Api) -> None:
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


def _start_node(
    layout: Layout, daemons: Daemons, binaries: Binaries, plane: ControlPlane, firewall: str | None
) -> None:
    run = daemons.start
    scheduler_port, proxy_health, proxy_metrics, dns_ready = free_ports(4)
    user = f"system:node:{layout.node}"
    certificate, key = plane.issuer.issue("node", user, groups=("system:nodes",))
    node = write_kubeconfig(
        layout.plane / "node.kubeconfig",
        plane.url,
        plane.authority,
        {"client-certificate": str(certificate), "client-key": str(key)},
    )
    kubelet = run(
        "kubelet",
        binaries["kubelet"],
        f"--config={layout.config / 'kubelet.yaml'}",
        f"--kubeconfig={node}",
        f"--hostname-override={layout.node}",
        f"--node-ip={layout.address}",
        f"--root-dir={layout.kubelet}",
        f"--cert-dir={layout.kubelet / 'pki'}",
    )
    scheduler = run(
        "kube-scheduler",
        binaries["kube-scheduler"],
        f"--kubeconfig={layout.kubeconfig}",
        "--leader-elect=false",
        "--bind-address=127.0.0.1",
        f"--secure-port={scheduler_port}",
        f"--cert-dir={layout.plane}",
    )
    proxy = run(
        "kube-proxy",
        binaries["kube-proxy"],
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
    dns = run("coredns", binaries["coredns"], "-conf", str(corefile))
    _wait_for(f"node {layout.node} to be Ready", kubelet, lambda: _is_ready(plane.api, layout.node), 90)
    if firewall is not None:
        _enforce_policies(layout, daemons, binaries, firewall)
    _wait_for("CoreDNS to be ready", dns, lambda: _answers(f"http://127.0.0.1:{dns_ready}/ready"), 60)
    _wait_for("kube-proxy's rules", proxy, lambda: _answers(f"http://127.0.0.1:{proxy_health}/healthz"), 60)
    _wait_for("the scheduler", scheduler, scheduler.running, 10)


def _enforce_policies(layout: Layout, daemons: Daemons, binaries: Binaries, firewall: str) -> None:
    """After the node has its address, without which the agent ends."""
    policy.link_tools(layout.tools, firewall)
    (port,) = free_ports(1)
    ready = f"127.0.0.1:{port}"
    agent = daemons.start(
        "netpol", *policy.command(binaries["netpol"], layout.kubeconfig, layout.node, SERVICES, ready, layout.tools)
    )
    _wait_for("the agent for NetworkPolicies", agent, lambda: _answers(f"http://{ready}"), 30)


def _wait_for(what: str, process: Process, check: Callable[[], bool], timeout: float) -> None:
    def checked() -> bool:
        if not process.running():
            raise MachineError(process.tail())
        return check()

    wait_for(what, checked, timeout, process.tail, pause=0.1)


def _is_ready(api: Api, node: str) -> bool:
    found: dict[str, Any] = api.find(f"/api/v1/nodes/{node}") or {}
    conditions = found.get("status", {}).get("conditions", ())
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def _answers(url: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(url, trust_env=False).status_code == 200
    return False
