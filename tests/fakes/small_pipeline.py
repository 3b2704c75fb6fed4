"""A pipeline of one node, as text."""

SMALL = """\
apiVersion: servepipe.dev/v1alpha1
kind: ServePipeline
metadata: {name: small}
spec:
  graph:
    steps:
    - {name: m1-output, node: m1, method: forward, args: [{$input: []}]}
    output: {$step: m1-output}
  nodes:
    m1: {import: "models:Model", args: [1]}
"""
