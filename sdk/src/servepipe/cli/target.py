"""Which pipelines a command is about: those that run on this machine, or those of a cluster."""

from __future__ import annotations

import argparse

__all__ = ["add_cluster_options", "named_cluster", "targets_cluster"]


def add_cluster_options(parser: argparse.ArgumentParser, *, only: bool = True) -> None:
    """Add ``--kube``, ``--context``, ``-n`` and ``--kubeconfig``.

    Args:
        only: The command is about clusters in any case; ``--kube`` is taken, and not worth a line of its help.
    """
    group = parser.add_argument_group("cluster")
    what = "in the cluster, not on this machine; implied by the options below and by `kubectl servepipe`"
    group.add_argument(
        "--kube",
        action="store_true",
        default=argparse.SUPPRESS,  # the default says how the command was called
        help=argparse.SUPPRESS if only else what,
    )
    group.add_argument("--context", metavar="NAME", help="context of the kubeconfig; default: its current one")
    group.add_argument("-n", "--namespace", metavar="NS", help="default: the context's")
    group.add_argument("--kubeconfig", metavar="FILE", help="default: KUBECONFIG, else ~/.kube/config")


def named_cluster(arguments: argparse.Namespace) -> bool:
    """Whether an option says which cluster or namespace."""
    return any(getattr(arguments, name, None) for name in ("context", "namespace", "kubeconfig"))


def targets_cluster(arguments: argparse.Namespace) -> bool:
    """Whether the command line means a cluster."""
    return bool(getattr(arguments, "kube", False)) or named_cluster(arguments)
