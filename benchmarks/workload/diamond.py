"""Two models side by side, and a function that puts their answers together."""

import models

from servepipe import ServeInputNode, build, remote

Scale = remote(models.Scale, max_ongoing_requests=100)
ensemble = remote(models.ensemble, max_ongoing_requests=100)

with ServeInputNode() as dag_input:
    m1 = Scale.bind(1)
    m2 = Scale.bind(2)
    answer = ensemble.bind(m1.forward.bind(dag_input[0]), m2.forward.bind(dag_input[1]), dag_input[2])

app = build(answer, name="bench-diamond")
