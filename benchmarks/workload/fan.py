"""Eight models at once, and a function that adds their answers up."""

import models

from servepipe import ServeInputNode, build, remote

Scale = remote(models.Scale, max_ongoing_requests=100)
total = remote(models.total, max_ongoing_requests=100)

with ServeInputNode() as dag_input:
    scales = [Scale.bind(factor) for factor in range(1, 9)]
    answer = total.bind(*[scale.forward.bind(dag_input[0]) for scale in scales])

app = build(answer, name="bench-fan")
