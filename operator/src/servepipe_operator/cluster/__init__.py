"""Pipelines in a Kubernetes cluster, from the command line and from Python: the other side is the operator."""
