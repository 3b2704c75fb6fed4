"""What a run says about itself to others, as it changes: ``run.json``."""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from typing import Any

from servepipe.errors import RunError
from servepipe_operator.adapters.local_ray import LocalRay
from servepipe_operator.adapters.processes import identify
from servepipe_operator.local.run_folder import Run, RunFolder
from servepipe_operator.view import View

__all__ = ["RunRecord"]


class RunRecord:
    """The one who writes ``run.json`` of a folder that is held.

    Args:
        folder: Whose file it is.
        view: Where it is said that the file cannot be written.
    """

    def __init__(self, folder: RunFolder, view: View) -> None:
        self._folder = folder
        self._view = view
        self._run: Run | None = None

    @property
    def run(self) -> Run:
        """As last told, also where it could not be written. Raises `RunError` before `begin`."""
        if self._run is None:
            raise RunError("The run has not started yet")
        return self._run

    def begin(self, pipeline: str, *, control: str, token: str, source: str) -> None:
        """Nothing is written before the ports are known."""
        supervisor = identify(os.getpid())
        if supervisor is None:
            raise RunError("This machine does not say when its processes started")
        self._run = Run(pipeline, "Starting", "", control, token, supervisor, source)

    def write(self, run: Run) -> None:
        """Tell everything anew. Raises `OSError`: a run that nobody can find must not start."""
        self._run = run
        self._folder.write(run)

    def change(self, **changes: Any) -> None:
        """Tell what is different now. A full disk is no reason to end what serves: it is said, once per change."""
        if (changed := replace(self.run, **changes)) == self.run:
            return
        try:
            self.write(changed)
        except OSError as error:
            self._view.say(f"Note: {self._folder.run_file} cannot be written: {error.strerror}")

    def processes_of(self, ray: LocalRay | None) -> None:
        """Tell which processes there are: the next start ends those that are left."""
        if ray is not None:
            self.change(processes=tuple(ray.processes()), link=str(ray.link or ""))

    def stopping(self) -> None:
        """Tell that the run ends, if it ever began. Raises nothing, so that the rest of the end comes."""
        if self._run is not None and self._run.ports:
            with contextlib.suppress(OSError):
                self.write(replace(self._run, state="Stopping"))
