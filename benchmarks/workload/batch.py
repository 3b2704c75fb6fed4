"""A model of two replicas that takes batches."""

import kernels

from servepipe import ServeInputNode, build, remote

Kernel = remote(kernels.Kernel, max_ongoing_requests=100)

with ServeInputNode() as dag_input:
    kernel = Kernel.bind()
    answer = kernel.one.bind(dag_input[0])

app = build(answer, name="bench-batch")
app.kernel.set_options(num_replicas=2)
