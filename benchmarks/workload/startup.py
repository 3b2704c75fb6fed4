"""Eight models with a process each, for the time that it takes to start them."""

import models

from servepipe import ServeInputNode, build, remote

Scale = remote(models.Scale, max_ongoing_requests=100)

with ServeInputNode() as dag_input:
    scales = [Scale.bind(factor) for factor in range(1, 9)]
    answer = [scale.forward.bind(dag_input[0]) for scale in scales]

app = build(answer, name="bench-startup")
