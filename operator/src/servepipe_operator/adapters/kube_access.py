"""How to reach and speak to a Kubernetes API server: login is that of `kubernetes.aio`.

It knows a ServiceAccount's token, which is read again as it is rotated, and kubeconfigs with their plug-ins and TLS.
"""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from kubernetes.aio import client as kubernetes_client
from kubernetes.aio import config as kubernetes_config
from kubernetes.aio.client import rest as kubernetes_rest

__all__ = ["Access", "login"]


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

    async def headers() -> dict[str, str]:
        settings = await configuration.auth_settings()
        wanted = [s for s in settings.values() if s.get("in") == "header" and s.get("value")]
        return {str(s["key"]): str(s["value"]).strip() for s in wanted}

    url = str(configuration.host).rstrip("/")
    context = kubernetes_rest.RESTClientObject(configuration).ssl_context if url.startswith("https") else None
    return Access(url, headers, context)
