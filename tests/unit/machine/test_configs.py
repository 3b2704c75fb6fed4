"""Files for the daemons: what they hold must be readable for them and stay inside the folder."""

import hashlib
import json
import tarfile
import tomllib
from pathlib import Path
from typing import Any

import pytest
from machine import archive, configs
from machine.layout import Layout, MachineError

HERE = Layout(Path("/x/machine"))


def test_containerd_keeps_everything_in_the_folder() -> None:
    config = tomllib.loads(configs.containerd(HERE))
    cri = config["plugins"]["io.containerd.grpc.v1.cri"]
    runc = cri["containerd"]["runtimes"]["runc"]
    paths = [config["root"], config["state"], config["grpc"]["address"], cri["cni"]["conf_dir"]]
    assert all(path.startswith("/x/machine/") for path in [*paths, runc["options"]["Root"]])
    assert cri["restrict_oom_score_adj"] is True
    assert cri["netns_mounts_under_state_dir"] is True


def test_pods_have_addresses_of_the_bridges_network() -> None:
    network = json.loads(configs.cni(HERE))
    bridge = network["plugins"][0]
    assert (bridge["bridge"], bridge["isGateway"]) == ("svpbr0", True)
    assert bridge["ipam"]["ranges"] == [[{"subnet": "10.244.0.0/24"}]]
    assert bridge["ipam"]["dataDir"].startswith("/x/machine/")


def test_kubelet_asks_the_api_server_who_may_and_works_on_both_cgroup_versions() -> None:
    config = json.loads(configs.kubelet(HERE, Path("/ca.crt"), (Path("/k.crt"), Path("/k.key"))))
    assert config["authentication"]["anonymous"] == {"enabled": False}
    assert config["authorization"] == {"mode": "Webhook"}
    assert (config["failCgroupV1"], config["failSwapOn"]) == (False, False)
    assert config["containerRuntimeEndpoint"] == "unix:///x/machine/containerd.sock"


@pytest.mark.parametrize(
    ("folder", "said"), [("machine", "must be an absolute path"), ("/" + "x" * 90, "too long a path for sockets")]
)
def test_a_folder_in_which_it_could_not_work_is_refused(folder: str, said: str) -> None:
    with pytest.raises(MachineError, match=said):
        Layout(Path(folder))


def test_an_image_is_the_same_each_time_and_names_its_parts_by_their_content(tmp_path: Path) -> None:
    program = tmp_path / "pod"
    program.write_bytes(b"\x7fELF")
    archive.write(tmp_path / "1.tar", "localhost/pod:1", program)
    archive.write(tmp_path / "2.tar", "localhost/pod:1", program)
    assert (tmp_path / "1.tar").read_bytes() == (tmp_path / "2.tar").read_bytes()
    with tarfile.open(tmp_path / "1.tar") as tar:
        held = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    blobs = {name.rpartition("/")[2]: content for name, content in held.items() if name.startswith("blobs/")}
    assert all(hashlib.sha256(content).hexdigest() == name for name, content in blobs.items())

    def blob(descriptor: dict[str, Any]) -> bytes:
        content = blobs[descriptor["digest"].removeprefix("sha256:")]
        assert len(content) == descriptor["size"]
        return content

    entry = json.loads(held["index.json"])["manifests"][0]
    assert entry["annotations"]["io.containerd.image.name"] == "localhost/pod:1"
    manifest = json.loads(blob(entry))
    assert json.loads(blob(manifest["config"]))["config"]["Entrypoint"] == ["/pod"]
    blob(manifest["layers"][0])
