"""Where everything of the cluster is: paths below its folder, addresses, names. Nothing here touches the machine."""

from dataclasses import dataclass
from pathlib import Path

#: What the kernel takes as the path of a Unix socket, with the zero at its end.
SOCKET_PATH_LIMIT = 108
#: containerd's shims have their sockets below its state folder; the longest name that they add.
_LONGEST_SOCKET = len("containerd.sock.ttrpc")


class MachineError(Exception):
    """The cluster cannot be had on this machine, or not as asked; the message says why and what to do."""


@dataclass(frozen=True)
class Layout:
    """The cluster in `folder`.

    Attributes:
        folder: Absolute. Made by `up`; after `down` only `logs` is left in it.
        node: The name of the only node.
        bridge: The interface that the pods' network and the node's address are on.
        address: The node's, the API server's and the DNS server's; may not be loopback.
        pods: The network of pods, which `address` is in.
    """

    folder: Path
    node: str = "node1"
    bridge: str = "svpbr0"
    address: str = "10.244.0.1"
    pods: str = "10.244.0.0/24"

    def __post_init__(self) -> None:
        if not self.folder.is_absolute():
            raise MachineError(f"the cluster's folder must be an absolute path, not {self.folder}")
        if len(str(self.socket)) + _LONGEST_SOCKET > SOCKET_PATH_LIMIT:
            raise MachineError(f"{self.folder} is too long a path for sockets in it; choose a shorter one")

    @property
    def record(self) -> Path:
        return self.folder / "record.json"

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    @property
    def plane(self) -> Path:
        """The control plane's folder: keys, kubeconfigs, etcd's data."""
        return self.folder / "plane"

    @property
    def kubeconfig(self) -> Path:
        return self.plane / "admin.kubeconfig"

    @property
    def config(self) -> Path:
        """Configuration files of the node's daemons."""
        return self.folder / "config"

    @property
    def tools(self) -> Path:
        """Programs that one daemon gets instead of the machine's own."""
        return self.folder / "tools"

    @property
    def socket(self) -> Path:
        return self.folder / "containerd.sock"

    @property
    def containerd(self) -> Path:
        return self.folder / "containerd"

    @property
    def kubelet(self) -> Path:
        return self.folder / "kubelet"

    @property
    def cni(self) -> Path:
        """Configuration of the pods' network; containerd reads every file in it."""
        return self.config / "cni"
