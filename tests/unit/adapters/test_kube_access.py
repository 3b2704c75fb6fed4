"""A person's way to a cluster: the kubeconfig as kubectl reads it, and a pod's own account."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from kubernetes.aio.config import ConfigException

from servepipe_operator.adapters import kube_access
from servepipe_operator.adapters.kube_access import person_login


def kubeconfig(path: Path, *contexts: str, namespace: str = "") -> str:
    """A file with these contexts, each with a server and a token of its name; the first is the current one."""
    place = {"namespace": namespace} if namespace else {}
    path.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": contexts[0],
                "clusters": [{"name": name, "cluster": {"server": f"https://{name}:6443"}} for name in contexts],
                "users": [{"name": name, "user": {"token": name}} for name in contexts],
                "contexts": [{"name": name, "context": {"cluster": name, "user": name, **place}} for name in contexts],
            }
        )
    )
    return str(path)


@pytest.fixture(autouse=True)
def no_config_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


async def test_the_current_context_and_its_namespace(tmp_path: Path) -> None:
    login = await person_login(kubeconfig(tmp_path / "config", "one", "two", namespace="shop"))
    assert (login.context, login.namespace, login.access.url) == ("one", "shop", "https://one:6443")
    assert set((await login.access.headers()).values()) == {"Bearer one"}


async def test_another_context_and_no_namespace(tmp_path: Path) -> None:
    login = await person_login(kubeconfig(tmp_path / "config", "one", "two"), "two")
    assert (login.context, login.namespace, login.access.url) == ("two", "default", "https://two:6443")
    with pytest.raises(ConfigException, match=r"no context 'three' in .*config; it has: one, two"):
        await person_login(str(tmp_path / "config"), "three")


async def test_the_environment_and_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigException, match=r"there is no kubeconfig at .*/home/\.kube/config"):
        await person_login()
    (tmp_path / "home/.kube").mkdir(parents=True)
    kubeconfig(tmp_path / "home/.kube/config", "home")
    assert (await person_login()).context == "home"
    monkeypatch.setenv("KUBECONFIG", kubeconfig(tmp_path / "named", "named"))
    assert (await person_login()).context == "named"
    assert (await person_login(kubeconfig(tmp_path / "given", "given"))).context == "given"


async def test_a_pods_own_account_where_there_is_no_kubeconfig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "namespace").write_text("inside\n")
    monkeypatch.setattr(kube_access, "IN_CLUSTER_NAMESPACE", tmp_path / "namespace")

    def load(client_configuration: Any) -> None:
        client_configuration.host = "https://10.96.0.1:443"

    monkeypatch.setattr("kubernetes.aio.config.load_incluster_config", load)
    login = await person_login()
    assert (login.context, login.namespace, login.access.url) == ("", "inside", "https://10.96.0.1:443")
    monkeypatch.setenv("KUBECONFIG", kubeconfig(tmp_path / "config", "outside"))
    assert (await person_login()).context == "outside", "as kubectl does it"
