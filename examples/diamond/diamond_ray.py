"""The diamond written with Ray's own decorator: the import of ServeInputNode and build is all that differs.

It compiles to the same bytes as `diamond.py`, and still runs on Ray itself.
"""

import models
import ray

from servepipe.ray import ServeInputNode, build

Model = ray.remote(models.Model)
ensemble = ray.remote(models.ensemble)

with ServeInputNode() as dag_input:
    m1 = Model.bind(1)
    m2 = Model.bind(2)
    m1_output = m1.forward.bind(dag_input[0])
    m2_output = m2.forward.bind(dag_input[1])
    ray_dag = ensemble.bind(m1_output, m2_output, dag_input[2])

app = build(ray_dag, name="diamond")
app.m1.set_options(num_replicas=3)
app.ingress.set_options(num_replicas=2)

if __name__ == "__main__":
    ray.init()
    assert ray.get(ray_dag.execute(1, 2, 3)) == 8
    print(app.to_yaml(), end="")
