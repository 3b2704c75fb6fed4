"""``python -m servepipe`` is the `servepipe` command."""

import sys

from servepipe.cli import main

sys.exit(main())
