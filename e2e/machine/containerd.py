"""The cluster's own containerd, and what `ctr` does with it."""

import os
import shutil
import subprocess
from pathlib import Path

from bed.processes import Process, wait_for

from machine import configs, host
from machine.daemons import Daemons
from machine.layout import Layout, MachineError

NAME = "containerd"


class Containerd:
    """Of one cluster; others that the machine has know nothing of it."""

    def __init__(self, layout: Layout, daemons: Daemons) -> None:
        self._layout, self._daemons = layout, daemons

    def start(self) -> Process:
        config = self._layout.config / "containerd.toml"
        config.write_text(configs.containerd(self._layout))
        program = shutil.which(NAME, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
        return self._daemons.start(NAME, program or NAME, f"--config={config}")

    def wait_until_it_answers(self, seconds: float = 30.0) -> None:
        log = self._layout.logs / f"{NAME}.log"

        def tail() -> str:
            return "\n".join(log.read_text(errors="replace").splitlines()[-25:])

        def answers() -> bool:
            try:
                self._daemons.pid(NAME)
            except MachineError as error:
                raise MachineError(f"{error}\n{tail()}") from error
            try:
                return bool(self._ctr("version"))
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                raise AssertionError(str(error)) from error

        wait_for(f"containerd at {self._layout.socket}", answers, seconds, tail, pause=0.1)

    def load_image(self, path: Path) -> None:
        self._ctr("images", "import", str(path))

    def images(self) -> list[str]:
        return [name for name in self._ctr("images", "list", "--quiet").split() if not name.startswith("sha256:")]

    def _ctr(self, *arguments: str) -> str:
        # Images of models are large, and the disk may be slow.
        return host.run("ctr", f"--address={self._layout.socket}", "--namespace=k8s.io", *arguments, timeout=600)
