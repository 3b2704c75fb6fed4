"""etcd, API server and controller-manager as processes on free ports, in one folder with their logs.

By default on loopback, without a scheduler, and with no node but those of `fake_kubelet`: Pods stay Pending. Everything
that the API server itself decides is real: schemas and CEL rules, RBAC, server-side apply, quotas, garbage collection,
namespaces that end.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import yaml

from bed.audit import AuditLog
from bed.build import Binaries
from bed.certificates import Authority
from bed.client import Api, Object, RefusedError, write_kubeconfig
from bed.processes import Process, free_ports, wait_for

CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"

AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata"}],
}

LOOPBACK = "127.0.0.1"
SERVICES = "10.96.0.0/16"
#: The API server's own Service.
API_SERVICE = "10.96.0.1"
#: Pods of tests have addresses in 127.0.0.0/8, which may not be in endpoints: those three would try for ever. The
#: last would take nodes for dead, as no kubelet here says that it lives, and evict their pods.
CONTROLLERS = (
    "*,-endpoints-controller,-endpointslice-controller,-endpointslice-mirroring-controller,-node-lifecycle-controller"
)


def _process(name: str, argv: list[str], log: Path) -> Process:
    # Of a short life, and memory is there: collecting garbage takes a tenth of what they compute.
    return Process(name, argv, log, {**os.environ, "GOGC": "300"})


@dataclass(frozen=True)
class Setup:
    """What a control plane is for. The defaults: tests of objects, without nodes.

    Attributes:
        address: Where the API server listens; nodes and pods need one that is not loopback.
        authorization: As kube-apiserver's flag.
        controllers: As kube-controller-manager's flag.
        process: Makes a process that is not yet started, from its name, command line and log.
    """

    address: str = LOOPBACK
    authorization: str = "RBAC"
    controllers: str = CONTROLLERS
    process: Callable[[str, list[str], Path], Process] = _process


class ControlPlane:
    """A cluster without nodes. `api` is its administrator, who may do everything.

    Attributes:
        issuer: The authority that signed all certificates, for those of nodes.
        kubelet: Certificate and key for `fake_kubelet`, whatever its nodes are called.
    """

    def __init__(self, folder: Path, binaries: Binaries, setup: Setup = Setup()) -> None:
        self.folder, self.binaries, self.setup = folder, binaries, setup
        etcd_port, peer_port, api_port, manager_port = free_ports(4)
        self.url = f"https://{setup.address}:{api_port}"
        self.audit_log = AuditLog(folder / "audit.log")
        self.issuer = authority = Authority(folder)
        self.authority = authority.certificate
        serving = authority.issue("apiserver", "kube-apiserver", addresses=(API_SERVICE, setup.address))
        admin = authority.issue("admin", "admin", groups=("system:masters",))
        self.kubelet = authority.issue("kubelet", "system:node:tests", groups=("system:nodes",))
        to_kubelets = authority.issue("apiserver-kubelet", "kube-apiserver-kubelet-client")
        signing = authority.signing_pair("serviceaccounts")
        user = {"client-certificate": str(admin[0]), "client-key": str(admin[1])}
        self.kubeconfig = write_kubeconfig(folder / "admin.kubeconfig", self.url, self.authority, user)
        self.api = Api(self.url, self.authority, certificate=admin)
        (folder / "audit-policy.yaml").write_text(json.dumps(AUDIT_POLICY))
        self.etcd = self._process(
            "etcd",
            f"--data-dir={folder / 'etcd'}",
            f"--listen-client-urls=http://127.0.0.1:{etcd_port}",
            f"--advertise-client-urls=http://127.0.0.1:{etcd_port}",
            f"--listen-peer-urls=http://127.0.0.1:{peer_port}",
            f"--initial-advertise-peer-urls=http://127.0.0.1:{peer_port}",
            f"--initial-cluster=default=http://127.0.0.1:{peer_port}",
            "--unsafe-no-fsync",  # the data is thrown away
        )
        self.api_server = self._process(
            "kube-apiserver",
            f"--etcd-servers=http://127.0.0.1:{etcd_port}",
            f"--secure-port={api_port}",
            f"--bind-address={setup.address}",
            f"--advertise-address={setup.address}",
            # On loopback it must not make endpoints of itself: it would insist on another address.
            f"--endpoint-reconciler-type={'none' if setup.address == LOOPBACK else 'lease'}",
            f"--cert-dir={folder}",
            f"--tls-cert-file={serving[0]}",
            f"--tls-private-key-file={serving[1]}",
            f"--client-ca-file={self.authority}",
            f"--service-account-key-file={signing[0]}",
            f"--service-account-signing-key-file={signing[1]}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--kubelet-certificate-authority={self.authority}",
            f"--kubelet-client-certificate={to_kubelets[0]}",
            f"--kubelet-client-key={to_kubelets[1]}",
            "--kubelet-preferred-address-types=InternalIP",
            f"--service-cluster-ip-range={SERVICES}",
            f"--authorization-mode={setup.authorization}",
            "--allow-privileged=true",
            f"--audit-policy-file={folder / 'audit-policy.yaml'}",
            f"--audit-log-path={self.audit_log.path}",
            "--audit-log-mode=blocking",  # a request that was answered is in the log
            "--audit-log-maxsize=100000",  # MB: never begun anew
        )
        self.controller_manager = self._process(
            "kube-controller-manager",
            f"--kubeconfig={self.kubeconfig}",
            f"--service-account-private-key-file={signing[1]}",
            f"--root-ca-file={self.authority}",
            "--use-service-account-credentials=true",
            f"--controllers={setup.controllers}",
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
            f"--secure-port={manager_port}",
            f"--cert-dir={folder}",
        )

    def _process(self, name: str, *flags: str) -> Process:
        return self.setup.process(name, [self.binaries[name], *flags], self.folder / f"{name}.log")

    # -- life

    def start(self) -> float:
        """Starts everything; returns the seconds until Pods can be created in namespace default."""
        started = time.monotonic()
        self.etcd.start()
        self.api_server.start()
        self.wait_until_ready()
        self.controller_manager.start()
        self.wait_for_service_account("default")
        return time.monotonic() - started

    def stop(self) -> None:
        """Ends everything at once: nothing here is worth an orderly end."""
        for process in (self.controller_manager, self.api_server, self.etcd):
            process.kill()
        self.api.close()

    def restart_api_server(self) -> None:
        """The API server dies and comes back on the same port with the same data."""
        self.api_server.kill()
        self.api_server.start()
        self.wait_until_ready()
        for crd in self.api.get(CRDS)["items"]:  # it says that it is ready before these are
            self._wait_until_served(crd["spec"])

    def wait_until_ready(self, timeout: float = 120.0) -> None:
        def ready() -> bool:
            for process in (self.etcd, self.api_server):
                if not process.running():
                    raise RuntimeError(process.tail())
            try:
                return self.api.text("/readyz") == "ok"
            except (RefusedError, httpx.TransportError) as error:
                raise AssertionError(str(error)) from error

        wait_for(f"{self.url}/readyz", ready, timeout, lambda: self.etcd.tail() + "\n" + self.api_server.tail())

    # -- what tests need

    def kubectl(
        self,
        *arguments: str,
        stdin: str | None = None,
        check: bool = True,
        kubeconfig: Path | None = None,
        env: dict[str, str] | None = None,
        timeout: float = 60.0,
    ) -> subprocess.CompletedProcess[str]:
        """Runs kubectl as the administrator, or with another kubeconfig.

        `check` makes a failure an AssertionError with its output.
        """
        command = [self.binaries["kubectl"], f"--kubeconfig={kubeconfig or self.kubeconfig}", *arguments]
        return run_kubectl(command, self.folder, stdin=stdin, check=check, env=env, timeout=timeout)

    def kubectl_plugin(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs a plug-in of kubectl, which it finds beside this Python; the plug-in reads KUBECONFIG."""
        path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
        env = {"HOME": str(self.folder), "PATH": path, "KUBECONFIG": str(self.kubeconfig)}
        command = [self.binaries["kubectl"], *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, env=env)

    def create_namespace(self, name: str, labels: dict[str, str] | None = None) -> str:
        """Makes a namespace in which Pods can be created at once; returns its name."""
        metadata = {"name": name, "labels": labels or {}}
        self.api.create("/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
        self.wait_for_service_account(name)
        return name

    def wait_for_service_account(self, namespace: str) -> None:
        """Without `default`, which the controller-manager makes, the API server refuses every Pod."""
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/default"
        wait_for(
            f"service account default in {namespace}", lambda: self.api.find(path), 60, self.controller_manager.tail
        )

    def install_crd(self, crd: Object) -> None:
        """Creates the CRD, or puts it in the place of the one that is there, and waits until its resource is served."""
        self.install_crds([crd])

    def install_crds(self, crds: list[Object]) -> None:
        """As `install_crd`, for many that come up at the same time."""
        for crd in crds:
            name = crd["metadata"]["name"]
            old = self.api.find(f"{CRDS}/{name}")
            if old is None:
                self.api.create(CRDS, crd)
            else:
                metadata = {**crd["metadata"], "resourceVersion": old["metadata"]["resourceVersion"]}
                self.api.replace(f"{CRDS}/{name}", {**crd, "metadata": metadata})
        for crd in crds:
            self._wait_until_served(crd["spec"])

    def _wait_until_served(self, spec: Object) -> None:
        """Until the resource of a CRD can be listed."""
        path = f"/apis/{spec['group']}/{spec['versions'][0]['name']}/{spec['names']['plural']}"

        def served() -> bool:
            try:
                return self.api.find(path) is not None
            except RefusedError as refused:
                if refused.code == 429:  # "storage is (re)initializing", for a moment
                    return False
                raise

        wait_for(f"{path} to be served", served, 60, self.api_server.tail)

    def service_account(self, namespace: str, name: str, rules: list[Object], *, cluster_wide: bool = False) -> Path:
        """A kubeconfig for a new service account that may do what `rules` (those of a Role) say.

        In its namespace, or everywhere if `cluster_wide`.
        """
        self.api.create(f"/api/v1/namespaces/{namespace}/serviceaccounts", {"metadata": {"name": name}})
        kind, folder = ("ClusterRole", "") if cluster_wide else ("Role", f"/namespaces/{namespace}")
        role = f"{namespace}-{name}"
        rbac = f"/apis/rbac.authorization.k8s.io/v1{folder}/{kind.lower()}"
        self.api.create(f"{rbac}s", {"metadata": {"name": role}, "rules": rules})
        binding = {
            "metadata": {"name": role},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": role},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": namespace}],
        }
        self.api.create(f"{rbac}bindings", binding)
        return self.kubeconfig_for(namespace, name)

    def kubeconfig_for(self, namespace: str, name: str) -> Path:
        """A kubeconfig for a service account that is there."""
        request = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"expirationSeconds": 7200},
        }
        answer = self.api.create(f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token", request)
        path = self.folder / f"{namespace}-{name}.kubeconfig"
        return write_kubeconfig(path, self.url, self.authority, {"token": answer["status"]["token"]}, namespace)

    def audit(self, user: str | None = None, since: int = 0) -> list[Object]:
        """See `AuditLog.events`."""
        return self.audit_log.events(user, since)


def run_kubectl(
    command: Sequence[str],
    home: Path,
    *,
    stdin: str | None = None,
    check: bool = True,
    env: Mapping[str, str] | None = None,
    timeout: float = 60.0,
) -> subprocess.CompletedProcess[str]:
    """Runs kubectl, which keeps its cache in `home`; `check` makes a failure an AssertionError with its output."""
    base = {"HOME": str(home), "PATH": "/usr/bin:/bin", "GOGC": "off"}
    done = subprocess.run(
        command, input=stdin, capture_output=True, text=True, timeout=timeout, env={**base, **(env or {})}
    )
    if check:
        assert done.returncode == 0, (
            f"kubectl {' '.join(command[1:])} ended with {done.returncode}\n{done.stdout}{done.stderr}"
        )
    return done


def load_crd(path: Path) -> Object:
    crd: Object = yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return crd
