"""One run has the cluster of this machine at a time, and one that was killed does not stand in the way."""

import subprocess
import sys
from pathlib import Path

import pytest
from clusters.place import held
from machine.layout import MachineError

HOLDS_AND_WAITS = """
import sys
from pathlib import Path
from clusters.place import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_run_is_refused_until_the_first_is_gone_even_by_kill_9(tmp_path: Path) -> None:
    place = tmp_path / "place"
    command = [sys.executable, "-c", HOLDS_AND_WAITS, str(place)]
    paths = {"PYTHONPATH": ":".join(sys.path)}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=paths) as first:
        try:
            assert first.stdout is not None and first.stdout.readline() == "held\n"
            with pytest.raises(MachineError, match="another run"), held(place):
                pass
        finally:
            first.kill()
    with held(place) as folder:
        assert folder.parent == place
    assert place.stat().st_mode & 0o777 == 0o700
