"""What a graph of models costs on servepipe, beside the same graph written by hand in other ways.

    cases ── contestants ── goals          what is compared, as data
        │
    schedule ──▶ runner ──▶ systems        what is started, in which order; the processes
                    │
                 client                    the load, in a process of its own
                    ▼
    samples ──▶ figures, verdicts ──▶ tables, plots, report

Everything but `runner`, `systems`, `client`, `startup` and `steps` is pure. See docs/benchmarks.md.
"""
