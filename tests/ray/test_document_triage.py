"""`make demo`, as a test: real models, real Ray, two upgrades under load."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).parents[2] / "examples" / "document_triage" / "demo.py"
TIMEOUT_S = 300

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(
        importlib.util.find_spec("rapidocr_onnxruntime") is None,
        reason="rapidocr-onnxruntime has no release for Python 3.13",
    ),
]


def test_the_demo_ends_well() -> None:
    demo = subprocess.Popen([sys.executable, str(DEMO)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        said, _ = demo.communicate(timeout=TIMEOUT_S)
    finally:
        if demo.poll() is None:  # it stops what it started before it ends
            demo.terminate()
            said, _ = demo.communicate()
            print(said)

    print(said)
    assert demo.returncode == 0
    windows = re.findall(r"requests sent meanwhile: (\d+), failed: (\d+)", said)
    assert [failed for _, failed in windows] == ["0", "0"]
    assert all(int(sent) >= 200 for sent, _ in windows)
    assert [line.split()[0] for line in said.splitlines() if line.endswith("upgraded")] == [
        "language-detector",
        "sentiment-analysis",
    ]
