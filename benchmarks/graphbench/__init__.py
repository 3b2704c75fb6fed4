"""What a graph of models costs on servepipe, beside the same graph written by hand in other ways.

    cases ── contestants ── goals          what is compared, as data
        │
    schedule ──▶ runner ──▶ systems        what is started, in which order; the processes, of which one system runs
                    │
                 client                    the load, in a process of its own
                    ▼
    samples ──▶ figures, verdicts ──▶ tables, plots, report

Cases to schedule and samples to report are pure (pictures and files are written at the end). See docs/benchmarks.md.
"""
