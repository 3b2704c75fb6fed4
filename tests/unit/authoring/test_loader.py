import os
import subprocess
import sys
import textwrap
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from servepipe.authoring import importing, loader
from servepipe.errors import GraphError, ImportPathError


@pytest.fixture(autouse=True)
def clean_imports() -> Iterator[None]:
    """Files of different tests have the same module names; none may outlive its test."""
    modules, path, meta = dict(sys.modules), list(sys.path), list(sys.meta_path)
    yield
    for name in set(sys.modules) - set(modules):
        if not name.startswith("servepipe"):
            del sys.modules[name]
    sys.path[:], sys.meta_path[:] = path, meta
    importing._for_ever = False


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(name: str = "pipeline.py", source: str = "") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source))
        return path

    return write


Write = Callable[..., Path]

END = "from servepipe.authoring.loader import EndImport, importing\n"


# Where a module lives


def test_the_import_root_is_the_first_folder_without_init(write: Write, tmp_path: Path) -> None:
    write("pkg/__init__.py")
    write("pkg/sub/__init__.py")
    assert loader.locate(write("pkg/sub/mod.py")) == (tmp_path, "pkg.sub.mod")
    assert loader.locate(tmp_path / "pkg/sub/__init__.py") == (tmp_path, "pkg.sub")
    assert loader.locate(write("plain/mod.py")) == (tmp_path / "plain", "mod")


def test_a_linked_file_keeps_the_name_of_the_link(write: Write, tmp_path: Path) -> None:
    target = write("..data/real-content")
    (tmp_path / "pipeline.py").symlink_to(target)
    assert loader.locate(tmp_path / "pipeline.py") == (tmp_path, "pipeline")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my-pipeline.py", "'my-pipeline' is not a Python name"),
        ("pipeline.txt", "not a Python file"),
        ("2fast/__init__.py", "'2fast' is not a Python name"),
    ],
)
def test_files_that_cannot_be_imported(write: Write, name: str, message: str) -> None:
    with pytest.raises(ImportPathError, match=message) as caught:
        loader.locate(write(name))
    assert caught.value.fix


def test_files_that_do_not_exist(tmp_path: Path) -> None:
    with pytest.raises(ImportPathError, match="does not exist"):
        loader.locate(tmp_path / "gone.py")
    with pytest.raises(ImportPathError, match="is a folder"):
        loader.locate(tmp_path)


def test_the_root_folder_cannot_be_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "is_file", lambda self: self.name == "__init__.py")
    with pytest.raises(ImportPathError, match="has no module name"):
        loader.locate("/__init__.py")


# Importing without running


def test_a_module_ends_where_it_would_run_and_stays_usable(write: Write) -> None:
    file = write(source=END + "before = importing()\nraise EndImport\nafter = 1\n")
    module = loader.load_module(file)
    assert module.before is True
    assert not hasattr(module, "after")
    assert sys.modules["pipeline"] is module
    assert not loader.importing()


def test_a_module_that_is_imported_by_another_ends_alone(write: Write) -> None:
    write("models.py", END + "class Model: pass\nraise EndImport\n")
    file = write(source=END + "from models import Model\nstill = importing()\n")
    assert loader.load_module(file).still is True


def test_ending_inside_a_coroutine_or_a_function_ends_the_module(write: Write) -> None:
    source = "import asyncio\nasync def run():\n    raise EndImport\nx = 1\nasyncio.run(run())\nx = 2\n"
    assert loader.load_module(write(source=END + source)).x == 1


def test_importing_is_a_matter_of_one_thread_and_of_the_import_alone(write: Write) -> None:
    file = write(
        source="""
        from servepipe.authoring.loader import importing
        import threading
        seen = []
        thread = threading.Thread(target=lambda: seen.append(importing()))
        thread.start(); thread.join()
        def later(): return importing()
        """
    )
    module = loader.load_module(file)
    assert module.seen == [False]
    assert module.later() is False


def test_a_plain_import_runs_everything(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(write("plain.py", END + "seen = importing()\n").parent))
    import plain  # type: ignore[import-not-found]

    assert plain.seen is False


def test_a_replica_imports_only_whoever_asks(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(write("plain.py", END + "x = 1\nraise EndImport\n").parent))
    loader.only_imports()
    loader.only_imports()
    import plain

    assert plain.x == 1


def test_the_folder_of_the_file_comes_first_on_the_path_once(write: Write, tmp_path: Path) -> None:
    sys.path.append(str(tmp_path))
    loader.load_module(
        write(source="import beside"),
    ) if write("beside.py") else None
    assert sys.path[0] == str(tmp_path)
    assert sys.path.count(str(tmp_path)) == 1


def test_loading_a_file_twice_runs_it_once(write: Write) -> None:
    file = write()
    assert loader.load_module(file) is loader.load_module(file)


@pytest.mark.parametrize("name", ["time.py", "json.py"])
def test_a_file_with_the_name_of_another_module(write: Write, name: str) -> None:
    with pytest.raises(ImportPathError, match="belongs to") as caught:
        loader.load_module(write(name))
    assert caught.value.fix == "Rename the file."


@pytest.mark.parametrize(
    ("source", "what", "line"),
    [
        ("x = 1\nraise ValueError('no weights\\nat all')", "raised ValueError: no weights", 2),
        ("def f():\n    return 1 / 0\nf()", "raised ZeroDivisionError: division by zero", 2),
        ("import sys\nsys.exit(3)", "raised SystemExit: 3", 2),
        ("x = (", "raised SyntaxError: '(' was never closed", 1),
        ("import not_there_at_all", "raised ModuleNotFoundError: No module named 'not_there_at_all'", 1),
        ("import json\njson.loads('{')", "raised JSONDecodeError", 2),
        ("assert False", "raised AssertionError$", 1),
        ("x = '\0'", "raised SyntaxError: source code string cannot contain null bytes", None),
    ],
)
def test_what_a_file_raises_is_told_with_its_own_line(write: Write, source: str, what: str, line: int | None) -> None:
    file = write(source=source)
    with pytest.raises(ImportPathError) as caught:
        loader.load_module(file)
    assert what in f"{caught.value.what}$"
    assert caught.value.where == (f"{file}:{line}" if line else str(file))
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize("source", ["class A: ...\nA.bind(1)", "def a(): ...\na.bind(1)"])
def test_binding_what_is_not_wrapped_names_the_decorator(write: Write, source: str) -> None:
    with pytest.raises(ImportPathError, match="has no attribute 'bind'") as caught:
        loader.load_module(write(source=source))
    assert "put @remote above the class or function" in caught.value.fix


def test_our_own_errors_and_interrupts_pass_through(write: Write) -> None:
    with pytest.raises(GraphError, match="a cycle"):
        loader.load_module(write("a.py", "from servepipe.errors import GraphError\nraise GraphError('a cycle')"))
    with pytest.raises(KeyboardInterrupt):
        loader.load_module(write("b.py", "raise KeyboardInterrupt"))


# From a path to an object


def test_objects_are_found_by_path_and_without_their_wrapper(write: Write, tmp_path: Path) -> None:
    write(
        "pkg/m.py",
        """
        class Wrapper:
            def __init__(self, target): self.__servepipe_target__ = target
        class Outer:
            class Inner: pass
        Twice = Wrapper(Wrapper(Outer))
        """,
    )
    outer = loader.load_object("pkg.m:Outer", tmp_path)
    assert loader.load_object("pkg.m:Twice") is outer
    assert loader.load_object("pkg.m:Twice.Inner") is outer.Inner
    assert sys.path[0] == str(tmp_path)


def test_genuine_ray_objects_are_unwrapped_without_importing_ray() -> None:
    script = """
        import ray, sys
        from servepipe.authoring.loader import unwrap
        class A: pass
        def f(): pass
        assert unwrap(ray.remote(A)) is A and unwrap(ray.remote(num_cpus=2)(f)) is f
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True)


def test_objects_that_look_like_rays(write: Write) -> None:
    """The shapes that Ray gives its wrappers; the test above says that they are those of the genuine ones."""
    module = loader.load_module(
        write(
            source="""
            class Plain: pass
            def plain(): pass
            class Modified(Plain):
                __ray_actor_class__ = Plain
            class ActorClass:
                def __init__(self, cls): self.__ray_metadata__ = type("Meta", (), {"modified_class": cls})
            class RemoteFunction:
                def __init__(self, function): self._function = function
            RemoteFunction.__module__ = "ray.remote_function"
            actor, bare, task = ActorClass(Modified), ActorClass(Plain), RemoteFunction(plain)
            """
        )
    )
    assert loader.unwrap(module.actor) is module.Plain
    assert loader.unwrap(module.bare) is module.Plain
    assert loader.unwrap(module.task) is module.plain


@pytest.mark.parametrize("path", ["pipeline", "pipeline:", ":x", "a b:c", "a:b c", "a/b.py:x", "", "a:b:c"])
def test_malformed_paths(path: str) -> None:
    with pytest.raises(ImportPathError, match="is not an import path"):
        loader.load_object(path)


def test_paths_that_lead_nowhere(write: Write, tmp_path: Path) -> None:
    file = write("m.py", "x = 1")
    with pytest.raises(ImportPathError, match=r"module 'm' has no 'y\.z'") as caught:
        loader.load_object("m:y.z", tmp_path)
    assert caught.value.where == str(file)
    assert "__main__" in caught.value.fix
    ended = write("ended.py", END + "x = 1\nraise EndImport\nclass Late: pass\n")
    with pytest.raises(ImportPathError, match="module 'ended' has no 'Late' before line 3") as caught:
        loader.load_object("ended:Late", tmp_path)
    assert caught.value.where == f"{os.path.relpath(ended)}:3"
    assert "before that line" in caught.value.fix
    for path in ("gone.deeper:x", "m.gone:x"):
        with pytest.raises(ImportPathError, match="is not found") as caught:
            loader.load_object(path, tmp_path)
        assert "PYTHONPATH" in caught.value.fix


# From an object to its path


def module_from(file: Path) -> types.ModuleType:
    return loader.load_module(file)


def test_names_of_classes_functions_and_what_is_bound_to_a_name(write: Write) -> None:
    write("factories.py", "def make():\n    class Made:\n        pass\n    return Made\n")
    module = module_from(
        write(
            source="""
            from factories import make
            class Model:
                class Inner: pass
                @staticmethod
                def tool(): pass
                @classmethod
                def made(cls): pass
                def __call__(self): pass
            class Child(Model): pass
            Bound = make()
            doubled = lambda x: 2 * x
            instance = Model()
            def _private(): pass
            class Wrapper:
                def __init__(self, target): self.__servepipe_target__ = target
                def __call__(self): pass
            Wrapped = Wrapper(make())
            """
        )
    )
    expected = {
        "Model": module.Model,
        "Model.Inner": module.Model.Inner,
        "Model.tool": module.Model.tool,
        "Model.made": module.Model.made,
        "Child": module.Child,
        "Bound": module.Bound,
        "doubled": module.doubled,
        "instance": module.instance,
        "_private": module._private,
        "Wrapped": module.Wrapped,
    }
    for name, obj in expected.items():
        assert loader.import_path_of(obj) == f"pipeline:{name}"
        assert loader.load_object(f"pipeline:{name}") in (obj, loader.unwrap(obj))


def test_names_of_libraries_and_builtins() -> None:
    import json.decoder

    assert loader.import_path_of(json.decoder.JSONDecoder) == "json.decoder:JSONDecoder"
    assert loader.import_path_of(len) == "builtins:len"
    assert loader.import_root(sys) is None
    assert loader.import_root(json.decoder) == Path(json.__file__).parents[1]


def test_a_class_that_another_has_replaced_under_its_name(write: Write) -> None:
    module = module_from(write(source="class A: pass\nold = A\nclass A: pass\n"))
    assert loader.import_path_of(module.A) == "pipeline:A"
    assert loader.import_path_of(module.old) == "pipeline:old"


def test_what_cannot_be_imported_again(write: Write) -> None:
    module = module_from(
        write(
            source="""
            def make():
                class Made: pass
                return Made
            def nested():
                def inner(): pass
                return inner
            class Model:
                def method(self): pass
            class A: pass
            gone = [A]
            del A
            lambdas = [lambda x: x]
            """
        )
    )
    cases: list[tuple[Any, str, str, int]] = [
        (module.lambdas[0], "it is a lambda", "top level", 13),
        (module.nested(), "inside a function", "Inner = nested(...)", 6),
        (module.make(), "inside a function", "Made = make(...)", 3),
        (module.gone[0], "no name that is bound to it", "Bind it", 10),
    ]
    for obj, why, fix, line in cases:
        with pytest.raises(ImportPathError, match=why) as caught:
            loader.import_path_of(obj)
        assert fix in caught.value.fix
        assert caught.value.where.endswith(f"pipeline.py:{line}")
    with pytest.raises(ImportPathError, match="an object of type Model"):
        loader.import_path_of(module.Model())


def test_objects_of_a_session_without_a_file() -> None:
    module = types.ModuleType("made_up")
    exec("class A: pass", module.__dict__)
    sys.modules["made_up"] = module
    with pytest.raises(ImportPathError, match="module 'made_up' has no file"):
        loader.import_path_of(module.A)
    script = """
        from servepipe.authoring.loader import import_path_of
        class A: pass
        a = A()
        def f():
            def g(): pass
            return g
        for thing in (A, lambda: 1, f(), a):
            try: import_path_of(thing)
            except Exception as error: print(type(error).__name__, 'file' in str(error))
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, capture_output=True, text=True)
    assert run.stdout == "ImportPathError True\n" * 4


@pytest.mark.parametrize("package", [True, False])
def test_the_same_names_however_python_was_started(write: Write, tmp_path: Path, package: bool) -> None:
    if package:
        write("app/__init__.py")
    write(
        "app/pipeline.py",
        """
        from servepipe.authoring.loader import import_path_of, import_root
        import sys
        class Model: pass
        print(import_path_of(Model), import_root(sys.modules[__name__]))
        """,
    )
    commands: list[tuple[list[str], Path]] = [
        (["pipeline.py"], tmp_path / "app"),
        (["app/pipeline.py"], tmp_path),
        (["-m", "app.pipeline"], tmp_path),
        (
            [
                "-c",
                f"from servepipe.authoring.loader import load_module as l; l({str(tmp_path)!r} + '/app/pipeline.py')",
            ],
            Path("/"),
        ),
    ]
    outputs = {
        subprocess.run([sys.executable, *args], cwd=cwd, check=True, capture_output=True, text=True).stdout
        for args, cwd in commands
    }
    root = tmp_path if package else tmp_path / "app"
    name = "app.pipeline" if package else "pipeline"
    assert outputs == {f"{name}:Model {root}\n"}


def test_a_method_that_only_looks_importable_is_not(write: Write) -> None:
    module = module_from(write(source="class A:\n    def m(self): pass\nbound = [A().m]\n"))
    with pytest.raises(ImportPathError, match=r"A\.m cannot be imported"):
        loader.import_path_of(module.bound[0])


def test_modules_are_forgotten_but_not_libraries(write: Write, tmp_path: Path) -> None:
    path = list(sys.path)
    with loader.forgetting():
        write("beside_it.py")
        loader.load_module(write(source="import beside_it, colorsys"))
    assert not {"pipeline", "beside_it"} & set(sys.modules)
    assert "colorsys" in sys.modules
    assert sys.path == path


def test_the_app_of_a_module(write: Write) -> None:
    source = "from servepipe import build, remote\ndef f(): return 1\napp = build(remote(f).bind(), name='one')\n"
    module = loader.load_module(write(source=source))
    assert loader.app_of(module) is loader.app_of(module, "app") is module.app
    module.other = module.app
    assert loader.app_of(module) is module.app
    del module.app, module.other
    with pytest.raises(ImportPathError, match="builds no App"):
        loader.app_of(module)
    module.app = 1
    with pytest.raises(ImportPathError, match="'app' is of type int, not an App"):
        loader.app_of(module, "app")


def test_inside_a_namespace_package_the_name_that_was_imported_counts(write: Write, tmp_path: Path) -> None:
    write("ns/part/models.py", "class Model: pass")
    module = loader.load_module(write(source="from ns.part.models import Model"))
    assert loader.import_path_of(module.Model) == "ns.part.models:Model"
    assert loader.import_root(sys.modules["ns.part.models"]) == tmp_path
