"""Kubernetes quantities: ``500m`` CPUs, ``16Gi`` of memory."""

from __future__ import annotations

import re
from decimal import Decimal

from servepipe.errors import ResourceError

__all__ = ["QUANTITY_PATTERN", "parse_quantity"]

#: What the resource takes: not negative, no exponent (readers of YAML disagree about ``1e3``).
QUANTITY_PATTERN = r"^[0-9]{1,15}(\.[0-9]{1,9})?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$"

_PARTS = re.compile(r"([0-9.]+)([A-Za-z]*)\Z")
_FACTORS = {
    "": Decimal(1),
    "m": Decimal("0.001"),
    **{unit: Decimal(1000) ** power for power, unit in enumerate("kMGTP", start=1)},
    **{f"{unit}i": Decimal(1024) ** power for power, unit in enumerate("KMGTP", start=1)},
}


def parse_quantity(text: str, path: str = "") -> Decimal:
    """The number that a quantity stands for: CPUs, GPUs, or bytes.

    Raises:
        ResourceError: ``text`` is not a quantity; ``path`` is where it stands.
    """
    if not re.match(QUANTITY_PATTERN, text) or text.endswith("\n"):
        raise ResourceError(f"{text!r:.60} is not a quantity", where=path, fix='Write "500m", "2" or "16Gi".')
    match = _PARTS.match(text)
    assert match is not None  # the pattern above is stricter
    return Decimal(match[1]) * _FACTORS[match[2]]
