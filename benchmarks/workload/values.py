"""Two models that give a large array each, and a function that takes both."""

import models

from servepipe import ServeInputNode, build, remote

Source = remote(models.Source, max_ongoing_requests=100)
measure = remote(models.measure, max_ongoing_requests=100)

with ServeInputNode() as dag_input:
    left = Source.bind(1)
    right = Source.bind(2)
    answer = measure.bind(left.get.bind(dag_input[0]), right.get.bind(dag_input[0]))

app = build(answer, name="bench-values")
