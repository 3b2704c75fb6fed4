"""A signal while the pipeline's file is still being imported: nothing of Ray has started, and nothing stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from servepipe_operator.adapters.processes import Process, identify

DEADLINE_S = 60.0
SLOW = """
import os, pathlib, time

pathlib.Path("importing.tmp").write_text(str(os.getpid()))
os.rename("importing.tmp", "importing")
time.sleep(600)
"""


def wait_for_import(folder: Path, up: subprocess.Popen[str]) -> Process:
    """The process that imports the file."""
    deadline = time.monotonic() + DEADLINE_S
    while not (folder / "importing").exists():
        assert up.poll() is None, up.communicate()
        assert time.monotonic() < deadline, "the import has not begun"
        time.sleep(0.05)
    found = identify(int((folder / "importing").read_text(encoding="utf-8")))
    assert found is not None
    return found


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_the_file_is_imported(tmp_path: Path, number: signal.Signals, code: int) -> None:
    (tmp_path / "slow.py").write_text(SLOW, encoding="utf-8")
    with subprocess.Popen(
        [sys.executable, "-c", "import sys; from servepipe.cli import main; sys.exit(main())", "up", "slow.py"],
        cwd=tmp_path,
        env=os.environ | {"XDG_STATE_HOME": str(tmp_path / "state")},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Whatever runs the tests in the background may ignore it, and that is inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as up:
        importing = wait_for_import(tmp_path, up)
        up.send_signal(number)
        out, err = up.communicate(timeout=DEADLINE_S)
    assert up.returncode == code
    assert "Traceback" not in out + err
    deadline = time.monotonic() + DEADLINE_S
    while importing.alive():
        assert time.monotonic() < deadline, "the importing process has not ended"
        time.sleep(0.05)
    assert not (tmp_path / "state").exists()
