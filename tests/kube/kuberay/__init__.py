"""A stand-in for KubeRay 1.7, its pods, Ray and Serve, on a real API server. A fixture of the tests, not product code.

There are two ways to run it. On a cluster with nodes, ``python -m kuberay KUBECONFIG --real-pods`` (as a fixture:
`e2e/kuberay_process`) is KubeRay only, at KubeRay's pace: kubelets run its pods, and in them are Ray, Serve and Ray's
own autoscaler. All else that is said here is about the other way, without nodes, where it plays these too.

It watches RayClusters and does what KubeRay does to them: Services, rights, the token's Secret, Pods, status, Events;
what it knowingly does otherwise stands at the end. No node exists, so it also plays scheduler and kubelet for the Pods
that it makes, Ray's autoscaler (version 2) in the head, and Ray with Serve in the pods. Every pod has an address of its
own in 127.0.0.0/8: heads answer on 8265 (``/api/serve/applications/``, ``/api/ray/version``; the token is checked),
heads and pods with a replica of Serve on 8000 (``/-/ready``, ``/-/routing``, ``/-/graph``, ``/-/healthz``, requests).

In a test::

    def test_something(kuberay: KubeRay, namespace: str, control_plane: ControlPlane) -> None:
        control_plane.api.create(f"/apis/ray.io/v1/namespaces/{namespace}/rayclusters", body)
        ip = kuberay.head_ip(namespace, "c")             # waits for the head; GET http://{ip}:8265/...
        kuberay.pods(namespace, "c", "ImagePullBackOff", group="default-a")   # that group's pods go wrong
        kuberay.pods(namespace, "c", "ok")
        kuberay.behave(namespace, "c", "hang")           # its dashboard never answers; also slow, refuse, error, ok
        before = kuberay.puts(namespace, "c")            # PUTs to this RayCluster; last_puts() has what was sent
        kuberay.pause("controller"); kuberay.resume()    # KubeRay is down; dashboards go on

`kuberay.control.KubeRay` has all of it. Everything else is done through the API server: deleting the head's Pod loses
Serve's state (unless GCS fault tolerance is on) and, when the next head is up, ends the workers, as Ray does.

The fixture ``kuberay`` runs in a thread for the whole session and serves every namespace, except those labelled
``kuberay-stand-in/controller: "off"`` (it makes nothing there) or ``kuberay-stand-in/kubelet: "off"`` (its Pods stay
as they were created). With ``kuberay-stand-in/node: NAME`` they are bound to that node, see `fake_kubelet`. A pod
template's annotation ``kuberay-stand-in/outcome`` is like `KubeRay.pods` for that pod. `kuberay.control.in_process`
starts one as a process, for benchmarks and where memory is measured: ``python -m kuberay KUBECONFIG``.

Time: Ray, Serve, the autoscaler (5 s between its looks; idleTimeoutSeconds) and KubeRay's requeue are ten times faster
than real ones (`kuberay.standin.Pace`). A node's first constructor argument says how it behaves in Serve: "good" or
anything else, "build-fails", "crashes", "hangs", "build-hangs" (`simulated_serve`). An actor starts only on a pod whose
free CPU, memory, GPU and custom resources it fits, and the autoscaler adds pods of groups that offer what is missing.

What it claims about KubeRay itself is checked by ``test_kuberay_contract_*.py``, which passed on KubeRay 1.7.0 too. One
thing there surprises: a pod that vanishes before KubeRay has looked again after making it (suspended or deleted within
moments) is looked for in vain for 30 s, and then made only when something else makes it look, at worst after 300 s. The
stand-in does so too, as much faster as everything else.

What is otherwise than in KubeRay: the script that waits for the head and the hash of a spec are written otherwise; no
webhooks, Ingress, batch schedulers, TLS, NetworkPolicy, history server, token of Kubernetes instead of Ray's, default
environment from its configuration, and none of its alpha features. Without nodes Redis is not emptied by a Job. Unless
its namespace names one, a pod has no node: it is gone at once when it is deleted (a finalizer on the template keeps it
Terminating), and port-forward does not reach it. Exec and the API server's Service proxy never do.
"""
