"""A model of two replicas whose calls take 1 ms or 50 ms, whatever the caller asks for."""

import models

from servepipe import ServeInputNode, build, remote

Work = remote(models.Work, max_ongoing_requests=100)

with ServeInputNode() as dag_input:
    work = Work.bind()
    answer = work.wait.bind(dag_input[0])

app = build(answer, name="bench-mixture")
app.work.set_options(num_replicas=2)
