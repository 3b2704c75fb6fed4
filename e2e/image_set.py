"""The images that the tests need, built where they are not there yet."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from clusters.choice import Mode
from images import pip_settings
from images.build import build
from images.plan import Image, docker_build, on_runtime, project_images

Say = Callable[[str], None]
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Images:
    """References, with tags.

    Attributes:
        operator, runtime: Of the project's Dockerfile.
        diamond, triage: The examples, on top of the runtime.
        shop, shop_two: Both versions of the pipeline that tests disturb; see `resources.Shop`.
        plans: All of them.
        archives: By reference, where there is no Docker engine that has them.
    """

    operator: str
    runtime: str
    diamond: str
    triage: str
    shop: str
    shop_two: str
    plans: Sequence[Image]
    archives: Mapping[str, Path]


def images_for(mode: Mode, second_shop: Path, say: Say) -> Images:
    """Args:
    mode: Of the cluster; the images for `current` have to be there already.
    second_shop: The sources of the shop's second version, see `resources.second_version`.

    Raises:
        MachineError: They cannot be built here, or a step failed.
    """
    plans = project_images()
    version = plans["operator"].reference.rpartition(":")[2]
    plans["shop"] = on_runtime("shop", HERE / "shop", plans["runtime"], version)
    plans["shop_two"] = on_runtime("shop_two", second_shop, plans["runtime"], version)
    archives: dict[str, Path] = {}
    if mode == "machine":
        archives = {one.reference: one.archive for one in build(list(plans.values()), say=say).values()}
    elif mode == "kind":
        _build_with_docker(list(plans.values()), say)
    return Images(
        plans["operator"].reference,
        plans["runtime"].reference,
        plans["diamond"].reference,
        plans["document_triage"].reference,
        plans["shop"].reference,
        plans["shop_two"].reference,
        list(plans.values()),
        archives,
    )


def _build_with_docker(plans: Sequence[Image], say: Say) -> None:
    with pip_settings.secrets(os.environ) as secrets:
        for plan in plans:
            say(f"images: docker builds {plan.name}")
            subprocess.run(docker_build(plan, secrets), check=True)
