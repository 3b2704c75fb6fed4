"""Decides what to do next: `plan` is a pure function of the resource, what is observed, and the clock.

state         what comes in and goes out: Observed, Environment, Plan
plan          the phases, in order
goal          what a spec asks for, in the engine's terms
history       records and the checkpoint: everything that must be remembered
deployed      where things stand, read from what is deployed and acknowledged
rollout       how revisions replace each other (the state machine is drawn there)
advance       what goes into the next checkpoint: accepted, promoted, given up
layout        which applications there are to be, and the tables that route between them
serve_config  builders of what is sent to Serve; scaling: between how many replicas
status        what the resource's status says; conditions, times
health        what Serve's report of one application means
revisions, names
"""
