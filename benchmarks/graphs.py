"""What a graph of models costs: see docs/benchmarks.md, and `python benchmarks/graphs.py --help`."""

from graphbench.__main__ import main

if __name__ == "__main__":
    raise SystemExit(main())
