"""The configuration of containerd, CNI, kubelet and CoreDNS, each as text. Pure."""

import json
from collections.abc import Mapping
from pathlib import Path

from machine.layout import Layout

PAUSE_IMAGE = "localhost/servepipe/pod:1"
NETWORK = "servepipe-machine"
CNI_PLUGINS = "/usr/lib/cni"  # where Debian has them


def containerd(layout: Layout) -> str:
    """Its own root, state and socket: a containerd that the machine has already is not touched."""
    return f"""version = 2
root = "{layout.containerd}/root"
state = "{layout.containerd}/state"
[grpc]
  address = "{layout.socket}"
[plugins."io.containerd.internal.v1.opt"]
  path = "{layout.containerd}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  # Without CAP_SYS_RESOURCE a lower score is refused, and every sandbox ends with "can't get final child's PID".
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        Root = "{layout.containerd}/runc"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{CNI_PLUGINS}"
    conf_dir = "{layout.cni}"
"""


def cni(layout: Layout) -> str:
    ipam = {
        "type": "host-local",
        "dataDir": str(layout.folder / "cni"),  # else /var/lib/cni/networks
        "ranges": [[{"subnet": layout.pods}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    bridge = {"type": "bridge", "bridge": layout.bridge, "isGateway": True, "hairpinMode": True, "ipam": ipam}
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    plugins = [bridge, portmap, {"type": "loopback"}]
    return json.dumps({"cniVersion": "0.4.0", "name": NETWORK, "plugins": plugins}, indent=1)


def kubelet(layout: Layout, authority: Path, serving: tuple[Path, Path]) -> str:
    """A KubeletConfiguration; JSON is YAML.

    Args:
        authority: Whose certificates its clients have.
        serving: Certificate and key of its own port.
    """
    config: Mapping[str, object] = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "failCgroupV1": False,
        "failSwapOn": False,
        "cgroupDriver": "cgroupfs",
        "containerRuntimeEndpoint": f"unix://{layout.socket}",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(authority)},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(serving[0]),
        "tlsPrivateKeyFile": str(serving[1]),
        "clusterDomain": "cluster.local",
        "clusterDNS": [layout.address],
        "resolvConf": str(layout.config / "resolv.conf"),
        "address": layout.address,
        "healthzBindAddress": "127.0.0.1",
        # Images cannot be pulled again, and the disk is shared with all else that the machine does.
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {"memory.available": "100Mi"},
        "maxPods": 100,
        "podLogsDir": str(layout.folder / "pod-logs"),
        "volumePluginDir": str(layout.kubelet / "volume-plugins"),
        # A pod that ends is seen sooner.
        "syncFrequency": "10s",
    }
    return json.dumps(config, indent=1)


def coredns(layout: Layout, kubeconfig: Path, ready: int) -> str:
    """Names of the cluster only: pods here need nothing from outside.

    Args:
        ready: The port of 127.0.0.1 at which it says that it knows the cluster.
    """
    return f""".:53 {{
    bind {layout.address}
    ready 127.0.0.1:{ready}
    errors
    kubernetes cluster.local in-addr.arpa {{
        kubeconfig {kubeconfig}
        pods insecure
        ttl 2
    }}
    template ANY ANY . {{
        rcode NXDOMAIN
    }}
}}
"""
