"""From a ServePipeline to the Kubernetes objects that it needs, as plain dicts, and the patch of a live RayCluster.

Everything here is a pure function: reading and writing objects is for adapters.
"""
