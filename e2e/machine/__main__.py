"""`python e2e/machine up | down | kubectl ... | images | load IMAGE.tar`: see the package's docstring."""

import argparse
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "e2e"), str(ROOT / "tests" / "kube")]

from bed.build import BuildError, cache, with_node  # noqa: E402
from images.build import build as build_images  # noqa: E402
from images.plan import project_images  # noqa: E402

from machine.cluster import MachineCluster  # noqa: E402
from machine.down import down  # noqa: E402
from machine.layout import Layout, MachineError  # noqa: E402


def main() -> int | str:
    parser = argparse.ArgumentParser(prog="python e2e/machine", description="A real Kubernetes on this machine.")
    parser.add_argument(
        "--folder", type=Path, default=cache() / "machine", help="where everything of it lies (default: %(default)s)"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("build", help="build the binaries now (minutes, once per pin)")
    up = commands.add_parser("up", help="start it; takes a former one in the folder down first")
    up.add_argument("--no-policies", action="store_true", help="without the agent that enforces NetworkPolicies")
    commands.add_parser("down", help="end it and take away all that it made; logs stay")
    images = commands.add_parser("images", help="build the project's images, and those of its examples, as archives")
    images.add_argument("names", nargs="*", metavar="NAME", help=f"only these: {', '.join(project_images())}")
    load = commands.add_parser("load", help="load an image into it")
    load.add_argument("archive", type=Path, help="an OCI archive")
    kubectl = commands.add_parser("kubectl", help="run kubectl as its administrator")
    kubectl.add_argument("arguments", nargs=argparse.REMAINDER)
    asked = parser.parse_args()
    folder: Path = asked.folder.absolute()
    try:
        if asked.command == "build":
            print(with_node().origin)
        elif asked.command == "up":
            MachineCluster.up(folder, policies=not asked.no_policies)
        elif asked.command == "down":
            if not down(Layout(folder), print):
                print(f"machine: no cluster in {folder}")
        elif asked.command == "images":
            known = project_images()
            unknown = [name for name in asked.names if name not in known]
            if unknown:
                return f"error: there is no image {', '.join(unknown)}; there are {', '.join(known)}"
            for built in build_images([known[name] for name in asked.names or known]).values():
                print(built)
        elif asked.command == "load":
            MachineCluster.attach(folder).load_image(asked.archive.absolute())
        else:
            kubeconfig = MachineCluster.attach(folder).kubeconfig
            # Its cache, too, goes with the cluster.
            options = [f"--kubeconfig={kubeconfig}", f"--cache-dir={folder / 'kubectl'}"]
            command = [with_node()["kubectl"], *options, *asked.arguments]
            os.execv(command[0], command)
    except (BuildError, MachineError, RuntimeError, AssertionError) as error:
        return f"error: {error}"
    return 0


if __name__ == "__main__":
    sys.exit(main())
