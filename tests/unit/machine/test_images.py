"""What goes into images, by which commands they are made, and what they get from the machine."""

import dataclasses
import re
from pathlib import Path

import pytest
from images import base, pip_settings
from images.plan import (
    PROJECT,
    ROOT,
    Image,
    base_reference,
    buildah_build,
    docker_build,
    docker_save,
    files,
    key,
    locked_version,
    on_runtime,
    project_images,
    project_version,
)
from images.store import bytes_of, driver

from servepipe_operator.controller.settings import Settings

# -- names


def test_the_images_have_the_names_that_the_operator_and_the_chart_take_by_default() -> None:
    images = project_images()
    default = next(field.default for field in dataclasses.fields(Settings) if field.name == "runtime_image")
    assert images["runtime"].reference == f"docker.io/{default.format(ray_version=locked_version('ray'))}"
    values = (ROOT / "charts/servepipe/values.yaml").read_text()
    assert "  repository: servepipe/operator\n" in values
    assert f"appVersion: {project_version()}\n" in (ROOT / "charts/servepipe/Chart.yaml").read_text()
    assert images["operator"].reference == f"docker.io/servepipe/operator:{project_version()}"


@pytest.mark.parametrize("name", ["diamond", "document_triage"])
def test_an_example_is_made_from_the_runtime_of_this_version_by_default(name: str) -> None:
    image = project_images()[name]
    assert image.parent is not None
    default = re.search(r"^ARG RUNTIME=(\S+)$", (image.context / "Dockerfile").read_text(), re.MULTILINE)
    assert default is not None
    assert f"docker.io/{default[1]}" == image.parent.reference


def test_the_base_has_the_python_of_its_stand_in() -> None:
    assert base_reference() == f"docker.io/library/{base.PYTHON.replace('python', 'python:')}-slim-{base.SUITE}"


# -- what goes in


def test_what_goes_in_is_what_docker_sends() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in lines
    let_in = {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert let_in | {".dockerignore", "Dockerfile"} == set(PROJECT)


def test_every_file_that_a_dockerfile_copies_goes_in() -> None:
    for image in project_images().values():
        text = (image.context / "Dockerfile").read_text()
        copied = [
            source
            for line in re.findall(r"^COPY (?!--from)(.*)$", text, re.MULTILINE)
            for source in [word for word in line.split() if not word.startswith("--")][:-1]
        ]
        found = list(files(image))
        for source in copied:
            assert any(path.match(source) or path.is_relative_to(image.context / source) for path in found), source


@pytest.fixture
def runtime(tmp_path: Path) -> Image:
    folder = tmp_path / "runtime"
    (folder / "src" / "__pycache__").mkdir(parents=True)
    (folder / "Dockerfile").write_text("FROM base\n")
    (folder / "src" / "a.py").write_text("a = 1\n")
    return Image("runtime", "r/runtime:1", folder, ("Dockerfile", "src"), target="runtime", arguments={"VERSION": "1"})


@pytest.fixture
def models(runtime: Image, tmp_path: Path) -> Image:
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "models.py").write_text("m = 1\n")
    (tmp_path / "Dockerfile").write_text("ARG RUNTIME\n")
    return on_runtime("models", "r/models:1", folder, runtime, tmp_path / "Dockerfile")


def test_the_key_changes_with_each_file_and_argument_and_with_the_base(runtime: Image) -> None:
    keys = [key(runtime, "base")]

    def changed() -> bool:
        keys.append(key(runtime, "base"))
        return keys[-1] not in keys[:-1]

    (runtime.context / "src" / "a.py").write_text("a = 2\n")
    assert changed()
    (runtime.context / "src" / "b.py").touch()
    assert changed()
    (runtime.context / "src" / "b.py").chmod(0o600)
    assert changed()
    (runtime.context / "Dockerfile").write_text("FROM other\n")
    assert changed()
    assert key(dataclasses.replace(runtime, arguments={"VERSION": "2"}), "base") not in keys
    assert key(dataclasses.replace(runtime, target="operator"), "base") not in keys
    assert key(runtime, "another") not in keys


def test_the_key_stays_with_bytecode_and_with_what_does_not_go_in(runtime: Image) -> None:
    before = key(runtime, "base")
    (runtime.context / "src" / "__pycache__" / "a.pyc").write_bytes(b"x")
    (runtime.context / "notes.md").touch()
    assert key(runtime, "base") == before


def test_the_key_changes_with_the_image_below_and_with_a_dockerfile_elsewhere(models: Image, runtime: Image) -> None:
    first = key(models, "base")
    (runtime.context / "src" / "a.py").write_text("a = 2\n")
    second = key(models, "base")
    assert models.dockerfile is not None
    models.dockerfile.write_text("ARG RUNTIME=x\n")
    assert len({first, second, key(models, "base")}) == 3


# -- the commands


def test_docker_and_buildah_are_told_the_same(models: Image, runtime: Image, tmp_path: Path) -> None:
    secrets = {"pip.conf": tmp_path / "p", "ca.crt": tmp_path / "c"}
    docker, buildah = docker_build(runtime, secrets), buildah_build(runtime, secrets)
    assert docker[:2] == ["docker", "build"]
    assert docker[2:] == [
        f"--file={runtime.context}/Dockerfile",
        "--target=runtime",
        "--build-arg=VERSION=1",
        f"--secret=id=ca.crt,src={tmp_path}/c",
        f"--secret=id=pip.conf,src={tmp_path}/p",
        "--tag=r/runtime:1",
        str(runtime.context),
    ]
    assert buildah[:2] == ["buildah", "build"]
    assert buildah[-len(docker[2:]) :] == docker[2:]
    assert "--pull-never" in buildah
    assert docker_build(models, {})[2:] == [
        f"--file={tmp_path}/Dockerfile",
        "--build-arg=RUNTIME=r/runtime:1",
        "--tag=r/models:1",
        str(models.context),
    ]
    assert docker_save(models, tmp_path / "x.tar") == ["docker", "save", f"--output={tmp_path}/x.tar", "r/models:1"]


def test_layers_are_copied_only_where_the_kernel_cannot_lay_them_over_each_other() -> None:
    assert driver("nodev\tsysfs\nnodev\toverlay\n\text4\n") == "overlay"
    assert driver("nodev\tsysfs\n\text4\n") == "vfs"


@pytest.mark.parametrize(("said", "size"), [("573 MB", 573_000_000), ("1.05 GB", 1_050_000_000), ("12 B", 12)])
def test_sizes_as_buildah_says_them(said: str, size: int) -> None:
    assert bytes_of(said) == size


# -- pip's settings

LISTED = """\
global.cert='/etc/ssl/certs/all.crt'
global.index-url='https://first.example/simple'
install.index-url="https://user:it's@second.example/simple"
global.extra-index-url='\\nhttps://a.example/simple\\nhttps://b.example/simple'
:env:.find-links='/opt/wheels'
:env:.default-timeout='180'
"""


def test_settings_are_read_as_pip_lists_them() -> None:
    found = pip_settings.parse(LISTED)
    assert found["index-url"] == "https://user:it's@second.example/simple"  # the last one wins
    assert found["default-timeout"] == "180"


def test_steps_are_told_where_packages_come_from_but_no_paths_of_this_machine() -> None:
    settings = pip_settings.parse(LISTED)
    assert pip_settings.configuration(settings, "/etc/ssl/certs/all.crt") == (
        "[global]\n"
        "index-url = https://user:it's@second.example/simple\n"
        "extra-index-url = https://a.example/simple https://b.example/simple\n"
        "default-timeout = 180\n"
        "cert = /run/secrets/ca.crt\n"
    )
    assert pip_settings.configuration({"find-links": "/opt/wheels"}, None) == ""


def test_certificates_are_those_that_pip_would_trust() -> None:
    assert pip_settings.certificates({"cert": "/a"}, {"REQUESTS_CA_BUNDLE": "/b"}) == "/a"
    assert pip_settings.certificates({}, {"SSL_CERT_FILE": "/c", "REQUESTS_CA_BUNDLE": "/b"}) == "/b"
    assert pip_settings.certificates({}, {}) is None


def test_secrets_are_files_that_only_their_owner_reads_and_go(tmp_path: Path) -> None:
    config = tmp_path / "pip.conf"
    config.write_text("[global]\nindex-url = https://index.example/simple\n")
    environ = {"PIP_CONFIG_FILE": str(config), "HOME": str(tmp_path), "PATH": ""}
    with pip_settings.secrets(environ) as secrets:
        path = secrets["pip.conf"]
        assert "index-url = https://index.example/simple\n" in path.read_text()
        assert path.parent.stat().st_mode & 0o077 == 0
    assert not path.exists()
