"""Five models, one after the other."""

import models

from servepipe import ServeInputNode, build, remote

Increment = remote(models.Increment, max_ongoing_requests=100)

with ServeInputNode() as dag_input:
    s1 = Increment.bind()
    s2 = Increment.bind()
    s3 = Increment.bind()
    s4 = Increment.bind()
    s5 = Increment.bind()
    first = s2.forward.bind(s1.forward.bind(dag_input[0]))
    answer = s5.forward.bind(s4.forward.bind(s3.forward.bind(first)))

app = build(answer, name="bench-chain")
