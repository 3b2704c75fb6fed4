"""The builders as another version of servepipe has them."""

import servepipe
from servepipe.runtime.app import ingress, node

__all__ = ["ingress", "node"]

servepipe.__version__ = "0.0.1"
