"""REP-001's diamond: two models see a part of the input each, and a function puts their answers together."""

import models

from servepipe import ServeInputNode, build, remote

Model = remote(models.Model)
ensemble = remote(models.ensemble)

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
    assert ray_dag.execute(1, 2, 3) == 8  # 1*1 + 2*2 + 3, in this process
    print(app.to_yaml(), end="")
