"""What `app.deploy()` does: the same engine as `servepipe up`, in a child process that ends with this one."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from servepipe import errors
from servepipe.errors import RunError, ServePipeError
from servepipe_operator.local.client import ControlClient
from servepipe_operator.local.commands import require_extra
from servepipe_operator.local.run_folder import Run, RunFolder

__all__ = ["LocalBackend"]

READY_TIMEOUT_S = 600.0
STOP_TIMEOUT_S = 40.0
POLL_S = 0.2


class LocalBackend:
    """Runs one pipeline on this machine's own Ray for as long as this process lives."""

    def __init__(self) -> None:
        require_extra()
        self._child: subprocess.Popen[bytes] | None = None
        self._pipeline = ""
        self._joined = ""
        self._log = Path()
        self._environment: dict[str, str | None] = {}

    def deploy(self, resource: Any, *, import_root: Path | None) -> Any:
        """Start ``resource``, or apply it to what this backend runs already; returns when it is ready.

        Args:
            resource: The ``ServePipeline``.
            import_root: The folder from which the user's modules are imported.

        Returns:
            A Serve handle to the ingress; ``handle.remote(*args, **kwargs)`` runs the graph without its preprocessor.

        Raises:
            RunError: This process is connected to another Ray, or the pipeline does not start.
        """
        from servepipe import api

        self._refuse_other_ray()
        document, folder = api.write(resource), str(import_root or Path.cwd())
        name = str(resource.metadata.name)
        if self._child is not None and self._child.poll() is None and name == self._pipeline:
            generation = ControlClient(self._run()).apply(document, folder)["generation"]
        else:
            self.shutdown()
            generation = self._start(name, document, folder)
        try:
            self._wait_until_ready(generation)
            return self._join()
        except BaseException:
            # A first deployment that fails leaves nothing; a failed change leaves what served before.
            if not self._joined:
                self.shutdown()
            raise

    def shutdown(self) -> None:
        """Leave Ray and end the child with everything it started; doing it twice is the same as once."""
        atexit.unregister(self.shutdown)
        self._leave()
        child, self._child = self._child, None
        if child is None:
            return
        if child.stdin is not None:
            with contextlib.suppress(OSError):
                child.stdin.close()
        try:
            child.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            child.kill()  # Ray's holder then cleans up by itself
            child.wait()
        if child.stdout is not None:
            child.stdout.close()

    def _refuse_other_ray(self) -> None:
        ray = sys.modules.get("ray")
        if ray is None or not ray.is_initialized():
            return
        address = ray.get_runtime_context().gcs_address
        if address != self._joined:
            raise RunError(
                f"This process is connected to another Ray ({address})",
                fix="Call ray.shutdown() before deploy(), or deploy from another process.",
            )

    def _start(self, name: str, document: str, folder: str) -> int:
        run_folder = RunFolder.of(name)
        run_folder.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._pipeline, self._log = name, run_folder.path / "deploy.log"
        with self._log.open("wb") as log:
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-m", "servepipe_operator.local.deploy_child"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        atexit.register(self.shutdown)
        request = {"document": document, "folder": folder, "source": f"deploy() in process {os.getpid()}"}
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps(request).encode() + b"\n")
        self._child.stdin.flush()
        return 1

    def _wait_until_ready(self, generation: int) -> None:
        deadline = time.monotonic() + READY_TIMEOUT_S
        message = ""
        while time.monotonic() < deadline:
            self._raise_if_ended()
            snapshot = self._snapshot()
            if snapshot is not None and snapshot["observedGeneration"] >= generation:
                conditions = {c["type"]: c for c in snapshot["status"].get("conditions") or ()}
                if conditions.get("Ready", {}).get("status") == "True" and "Reconciling" not in conditions:
                    return
                for bad in (conditions.get("Stalled"), _refused(conditions.get("Accepted"))):
                    if bad is not None and bad["status"] == "True":
                        raise RunError(
                            f"{self._pipeline!r} does not start: {bad['message']}",
                            where=str(self._log),
                            fix="Correct it and deploy again.",
                        )
                message = str(conditions.get("Ready", {}).get("message", ""))
            time.sleep(POLL_S)
        raise RunError(
            f"{self._pipeline!r} is not ready after {READY_TIMEOUT_S:.0f} s: {message}", where=str(self._log)
        )

    def _raise_if_ended(self) -> None:
        child = self._child
        if child is None or child.poll() is None:
            return
        line = child.stdout.readline() if child.stdout is not None else b""
        if line:
            problem = json.loads(line)["error"]
            kind = getattr(errors, problem.pop("type"), ServePipeError)
            raise kind(**problem)
        raise RunError(f"The run of {self._pipeline!r} ended by itself", where=str(self._log))

    def _snapshot(self) -> dict[str, Any] | None:
        """None while the child is not up to answering."""
        run = RunFolder.of(self._pipeline).read()
        if run is None or self._child is None or run.supervisor.pid != self._child.pid:
            return None
        try:
            return ControlClient(run).status()
        except RunError:
            return None

    def _run(self) -> Run:
        run = RunFolder.of(self._pipeline).read()
        if run is None:
            raise RunError(f"The run of {self._pipeline!r} is gone", where=str(self._log), fix="Deploy again.")
        return run

    def _join(self) -> Any:
        run = self._run()
        if not self._joined:
            for name, value in {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": run.ray_token_file}.items():
                self._environment[name] = os.environ.get(name)
                os.environ[name] = value
            import ray
            from ray._private import ray_constants

            # The child's Ray is at 127.0.0.1. Without this ray.init puts this machine's outer address in its place.
            outer, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
            try:
                ray.init(address=run.ray_address, namespace="serve", log_to_driver=False, configure_logging=False)
            finally:
                ray_constants.ENABLE_RAY_CLUSTER = outer
            self._joined = run.ray_address
        from ray import serve

        return serve.get_deployment_handle("ingress", "ingress", _check_exists=False).run

    def _leave(self) -> None:
        if not self._joined:
            return
        import ray

        if ray.is_initialized() and ray.get_runtime_context().gcs_address == self._joined:
            ray.shutdown()
        self._joined = ""
        for name, value in self._environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        self._environment.clear()


def _refused(accepted: dict[str, Any] | None) -> dict[str, Any] | None:
    """``Accepted=False`` in the form of a condition that is bad when it is True."""
    return None if accepted is None or accepted["status"] != "False" else {**accepted, "status": "True"}
