"""How to reach and speak to a Kubernetes API server: login is that of `kubernetes.aio`.

It knows a ServiceAccount's token, which is read again as it is rotated, and kubeconfigs with their plug-ins and TLS.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from kubernetes.aio import client as kubernetes_client
from kubernetes.aio import config as kubernetes_config
from kubernetes.aio.client import rest as kubernetes_rest

__all__ = ["Access", "Login", "login", "person_login"]

IN_CLUSTER_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


async def _anonymous() -> dict[str, str]:
    return {}


@dataclass(frozen=True, slots=True)
class Access:
    """Where the API server is and how to speak to it.

    Args:
        url: Like ``https://10.96.0.1:443``.
        headers: Asked before every request, since tokens expire.
        ssl_context: None for plain HTTP.
    """

    url: str
    headers: Callable[[], Awaitable[dict[str, str]]] = field(default=_anonymous)
    ssl_context: ssl.SSLContext | None = None


async def login(kubeconfig: str = "") -> Access:
    """As a ServiceAccount inside a cluster, else with the kubeconfig (``KUBECONFIG``, ``~/.kube/config``).

    A kubeconfig's ``proxy-url`` and ``tls-server-name`` are not looked at.

    Args:
        kubeconfig: A file that is used in any case.

    Raises:
        kubernetes.aio.config.ConfigException: Neither is there, or what is there cannot be used.
    """
    configuration = kubernetes_client.Configuration()
    try:
        if kubeconfig:
            raise kubernetes_config.ConfigException
        kubernetes_config.load_incluster_config(client_configuration=configuration)
    except kubernetes_config.ConfigException:
        await kubernetes_config.load_kube_config(
            config_file=kubeconfig or None, client_configuration=configuration, persist_config=False
        )
    return _access(configuration)


@dataclass(frozen=True, slots=True)
class Login:
    """What a person's kubeconfig says.

    Args:
        access: The API server.
        context: Name of the context; "" inside a cluster.
        namespace: Where nobody names another one.
    """

    access: Access
    context: str
    namespace: str


async def person_login(kubeconfig: str = "", context: str = "") -> Login:
    """As kubectl does it: the kubeconfig first, and a pod's ServiceAccount where there is none.

    Args:
        kubeconfig: A file to use instead of ``KUBECONFIG`` and ``~/.kube/config``.
        context: A context to use instead of the current one.

    Raises:
        kubernetes.aio.config.ConfigException: No kubeconfig, no such context, or what is there cannot be used.
    """
    configuration = kubernetes_client.Configuration()
    file = kubeconfig or os.environ.get("KUBECONFIG") or _default_file()
    if not context and (namespace := _own_namespace(file)):
        kubernetes_config.load_incluster_config(client_configuration=configuration)
        return Login(_access(configuration), "", namespace)
    if not _exists(file):
        raise kubernetes_config.ConfigException(f"there is no kubeconfig at {file}")
    contexts, current = kubernetes_config.list_kube_config_contexts(config_file=file)
    if context:
        current = next((one for one in contexts if one["name"] == context), None)
        if current is None:
            names = ", ".join(sorted(str(one["name"]) for one in contexts))
            raise kubernetes_config.ConfigException(f"there is no context {context!r} in {file}; it has: {names}")
    await kubernetes_config.load_kube_config(
        config_file=file, context=current["name"], client_configuration=configuration, persist_config=False
    )
    namespace = str(current["context"].get("namespace") or "default")
    return Login(_access(configuration), str(current["name"]), namespace)


def _default_file() -> str:
    return str(Path("~/.kube/config").expanduser())


def _exists(kubeconfig: str) -> bool:
    """Whether any of the files is there; ``KUBECONFIG`` may name several."""
    return any(Path(path).exists() for path in kubeconfig.split(os.pathsep))


def _own_namespace(kubeconfig: str) -> str:
    """The namespace of this pod, "" outside of a cluster and where there is a kubeconfig."""
    if _exists(kubeconfig) or not IN_CLUSTER_NAMESPACE.exists():
        return ""
    return IN_CLUSTER_NAMESPACE.read_text(encoding="utf-8").strip()


def _access(configuration: kubernetes_client.Configuration) -> Access:
    async def headers() -> dict[str, str]:
        settings = await configuration.auth_settings()
        wanted = [s for s in settings.values() if s.get("in") == "header" and s.get("value")]
        return {str(s["key"]): str(s["value"]).strip() for s in wanted}

    url = str(configuration.host).rstrip("/")
    context = kubernetes_rest.RESTClientObject(configuration).ssl_context if url.startswith("https") else None
    return Access(url, headers, context)
