"""One node that answers what it is asked."""

import models

from servepipe import ServeInputNode, build, remote

echo = remote(models.echo, max_ongoing_requests=100)

with ServeInputNode() as dag_input:
    answer = echo.bind(dag_input[0])

app = build(answer, name="bench-noop")
