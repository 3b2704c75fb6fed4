import importlib.util
import itertools
import sys
import textwrap
from pathlib import Path

import pytest

_numbers = itertools.count()


@pytest.fixture
def write_module(tmp_path, monkeypatch):
    """Write a module into an import root of its own and import it: ``write_module(source, "pipeline")``.

    The name gets a number, because modules of one name would be found in `sys.modules`.
    """
    monkeypatch.syspath_prepend(tmp_path)
    made = []

    def write(source: str, stem: str = "pipeline"):
        name = f"{stem}_{next(_numbers)}"
        file = tmp_path / f"{name}.py"
        file.write_text(textwrap.dedent(source))
        made.append(name)
        spec = importlib.util.spec_from_file_location(name, file)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        return module

    yield write
    for name in made:
        sys.modules.pop(name, None)


@pytest.fixture
def root():
    """The repository."""
    return Path(__file__).parents[3]
