"""`servepipe-operator` where only a part of servepipe is installed."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys
sys.modules["kubernetes"] = None  # as if it were not installed
from servepipe_operator.controller.__main__ import main
main()
"""


def test_it_says_what_to_install() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert 'pip install "servepipe[operator]"' in done.stderr
    assert "Traceback" not in done.stderr
