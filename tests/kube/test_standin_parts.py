"""Parts of the stand-in that went wrong once, each by itself."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from bed.certificates import Authority
from kuberay import api as kuberay_api
from kuberay import commands
from kuberay.store import PODS, Store

Object = dict[str, Any]


def pod(version: int) -> Object:
    return {"metadata": {"namespace": "n", "name": "p", "uid": "u", "resourceVersion": str(version), "labels": {}}}


class Api:
    """Lists one pod, and tells that it is gone."""

    async def request(self, method: str, path: str, **query: str) -> Object:
        return {"items": [pod(1)], "metadata": {"resourceVersion": "1"}}

    async def watch(self, path: str, version: str, selector: str) -> AsyncIterator[Object]:
        yield {"type": "DELETED", "object": pod(3)}
        await asyncio.Event().wait()


async def test_a_late_answer_does_not_bring_a_pod_back() -> None:
    gone = asyncio.Event()
    store = Store(Api(), lambda kind, before, after: gone.set() if after is None else None)  # type: ignore[arg-type]
    following = asyncio.create_task(store.run(PODS))
    async with asyncio.timeout(10):
        await gone.wait()

    store.put(PODS, pod(2))

    assert store.get(PODS, "n", "p") is None
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


def test_processors_are_rounded_up() -> None:
    for asked, offered in {"500m": 1, "0.5": 1, "1": 1, "1500m": 2}.items():
        container = {"resources": {"limits": {"cpu": asked}}}

        assert commands.ray_resources({"template": {"spec": {"containers": [container]}}})["CPU"] == offered, asked


async def test_a_kubeconfig_may_hold_its_certificates_itself(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.issue("admin", "admin")
    held = {
        "certificate-authority-data": authority.certificate,
        "client-certificate-data": certificate,
        "client-key-data": key,
    }
    inline = {name: base64.b64encode(path.read_bytes()).decode() for name, path in held.items()}
    kubeconfig = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": "https://x", **inline}}],
        "users": [{"name": "u", "user": inline}],
    }
    (tmp_path / "kubeconfig").write_text(json.dumps(kubeconfig))

    api = kuberay_api.Api(tmp_path / "kubeconfig")

    assert api._ssl.get_ca_certs(binary_form=True) == [ssl.PEM_cert_to_DER_cert(authority.certificate.read_text())]
