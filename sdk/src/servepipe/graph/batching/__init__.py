"""Methods that compute several items at once, and are called with one.

    marks        what the author writes: `batch`, `set_batch`
    collector    which items make a batch, and when: decided without clock or event loop
    batcher      carries that out for one method of one node in this process
    results      what a batch returned, item by item

It lies below everything that calls a node, so each item is a call of its own wherever calls are limited, counted,
cancelled or timed: in the author's process, in the ingress, in a replica over channels and over Serve's handles.
"""
