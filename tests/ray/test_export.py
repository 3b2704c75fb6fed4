"""What `servepipe export` writes is run by Ray's own `serve deploy`, in a Ray that knows nothing of servepipe."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.ray

EXAMPLE = Path(__file__).parents[2] / "examples" / "diamond"


def diamond(folder: Path, module: str = "diamond", models: str = "models") -> None:
    """The example in ``folder``, small enough for a Ray with 4 CPUs."""
    source = (EXAMPLE / "diamond.py").read_text(encoding="utf-8").partition("\nif __name__")[0]
    source = source.replace("num_replicas=3", "num_cpus=0.1").replace("num_replicas=2", "num_cpus=0.1")
    source = source.replace("models", models).replace('"diamond"', f'"{module}"')
    source += "\napp.m2.set_options(num_cpus=0.1)\napp.deploy()\n"
    (folder / f"{module}.py").write_text(source, encoding="utf-8")
    (folder / f"{models}.py").write_text((EXAMPLE / "models.py").read_text(encoding="utf-8"), encoding="utf-8")


START_RAY = """\
import sys
import ray

context = ray.init(
    address="local",
    num_cpus=4,
    include_dashboard=True,
    dashboard_host="127.0.0.1",
    dashboard_port=int(sys.argv[1]),
    object_store_memory=100 * 1024 * 1024,
    log_to_driver=False,
)
print(f"http://{context.dashboard_url}", flush=True)
sys.stdin.read()
ray.shutdown()
"""

OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class PlainRay:
    """A Ray started with the user's folder on PYTHONPATH, and `serve deploy` to it."""

    def __init__(self, folder: Path, dashboard: str, environment: dict[str, str], port: int) -> None:
        self.folder, self.dashboard, self.environment, self.port = folder, dashboard, environment, port

    def export(self, *arguments: str) -> str:
        """The text that `servepipe export` writes for files of the user's folder."""
        command = [sys.executable, "-c", "import sys; from servepipe.cli import main; sys.exit(main())", "export"]
        done = subprocess.run(
            [*command, *arguments], cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def deploy(self, config: str) -> None:
        """`serve deploy`, at a port that is free here, and wait until all of it runs."""
        file = self.folder / "serve.yaml"
        file.write_text(config.replace('host: "0.0.0.0", port: 8000', f"host: 127.0.0.1, port: {self.port}"))
        assert f"port: {self.port}" in file.read_text()
        done = subprocess.run(
            [Path(sys.executable).parent / "serve", "deploy", file, "--address", self.dashboard],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        wanted = {application["name"] for application in yaml.safe_load(config)["applications"]}
        deadline = time.monotonic() + 180
        while True:
            found = self._applications()
            states = {name: application["status"] for name, application in found.items()}
            if states == dict.fromkeys(wanted, "RUNNING"):
                return
            failed = [name for name, state in states.items() if state == "DEPLOY_FAILED"]
            if failed or time.monotonic() > deadline:
                pytest.fail(
                    f"waited in vain for {sorted(wanted)} to be RUNNING; last seen: {json.dumps(found, indent=1)}"
                )
            time.sleep(0.2)

    def ask(self, *inputs: int) -> Any:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/", json.dumps(inputs).encode(), method="POST")
        try:
            with OPENER.open(request, timeout=60) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def _applications(self) -> dict[str, Any]:
        with OPENER.open(f"{self.dashboard}/api/serve/applications/", timeout=30) as answer:
            applications: dict[str, Any] = json.load(answer)["applications"]
            return applications


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def plain_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlainRay]:
    folder = tmp_path_factory.mktemp("user")
    diamond(folder)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "SERVEPIPE_"))}
    environment |= {"PYTHONPATH": str(folder), "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    process = subprocess.Popen(
        [sys.executable, "-c", START_RAY, str(free_port())],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        dashboard = process.stdout.readline().strip()
        assert dashboard.startswith("http://"), "Ray did not start"
        yield PlainRay(folder, dashboard, environment, free_port())
    finally:
        process.stdin.close()
        process.wait(60)
        process.stdout.close()


def test_serve_deploy_runs_the_exported_file(plain_ray: PlainRay) -> None:
    plain_ray.deploy(plain_ray.export("serve", "diamond.py"))
    assert plain_ray.ask(1, 2, 3) == 8
    assert plain_ray.ask(2, 3, 4) == 12
    status, body = plain_ray.ask(1, 2)
    assert status == 422
    assert "[2]" in body


def test_serve_deploy_runs_what_is_in_a_rayservice(plain_ray: PlainRay) -> None:
    (plain_ray.folder / "five.yaml").write_text("spec: {nodes: {m2: {args: [5]}, ensemble: {placement: Inline}}}")
    service = yaml.safe_load(plain_ray.export("rayservice", "diamond.py", "-f", "five.yaml", "--image", "unused:1"))
    plain_ray.deploy(service["spec"]["serveConfigV2"])
    assert plain_ray.ask(1, 2, 3) == 1 * 1 + 2 * 5 + 3


def test_serve_deploy_takes_the_code_from_a_working_dir(plain_ray: PlainRay, tmp_path: Path) -> None:
    # Modules of their own: those of the other tests are on this Ray's path.
    diamond(tmp_path, "zipped", "zipped_models")
    models = tmp_path / "zipped_models.py"
    models.write_text(models.read_text(encoding="utf-8").replace("self.val * x", "self.val + x"), encoding="utf-8")
    archive = tmp_path / "code.zip"
    with zipfile.ZipFile(archive, "w") as files:
        for name in ("zipped.py", "zipped_models.py"):
            files.write(tmp_path / name, name)
    plain_ray.deploy(plain_ray.export("serve", str(tmp_path / "zipped.py"), "--working-dir", archive.as_uri()))
    assert plain_ray.ask(1, 2, 3) == (1 + 1) + (2 + 2) + 3
