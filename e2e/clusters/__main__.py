"""``python e2e/clusters [--cluster=MODE]``: prints which cluster the tests would run on; ends with 77 where none."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from clusters.choice import MODES, NOTHING_POSSIBLE, choose, look


def main() -> int:
    parser = argparse.ArgumentParser(prog="python e2e/clusters", description=__doc__)
    parser.add_argument("--cluster", choices=MODES)
    choice = choose(look(), parser.parse_args().cluster)
    print(choice)
    return 0 if choice.mode else NOTHING_POSSIBLE


if __name__ == "__main__":
    sys.exit(main())
