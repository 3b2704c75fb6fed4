"""The diamond behind a preprocessor: an HTTP body such as `1 2 3` becomes the list that the graph reads."""

import models

from servepipe import ServeInputNode, build, remote

Model = remote(models.Model)
ensemble = remote(models.ensemble)


async def request_to_numbers(request):
    """Three numbers in plain text, as a list: its items are what `dag_input[0]` and the others take."""
    return [int(word) for word in (await request.body()).split()]


with ServeInputNode(preprocessor=request_to_numbers) as dag_input:
    m1 = Model.bind(1)
    m2 = Model.bind(2)
    m1_output = m1.forward.bind(dag_input[0])
    m2_output = m2.forward.bind(dag_input[1])
    ray_dag = ensemble.bind(m1_output, m2_output, dag_input[2])

app = build(ray_dag, name="diamond-preprocessed")

if __name__ == "__main__":
    assert ray_dag.execute([1, 2, 3]) == 8
    print(app.to_yaml(), end="")
