"""A real Kubernetes on one bare Linux machine: root, but no Docker, no registry and no virtual machine.

    python e2e/machine up        # about ten seconds, when everything is built
    python e2e/machine kubectl get nodes
    python e2e/machine down

etcd, API server, controller-manager, scheduler, containerd, kubelet, kube-proxy, CoreDNS and an agent that enforces
NetworkPolicies run as processes of the machine; a bridge is the network of its pods. Everything lies in one folder, and
`down` takes away all that does not. Tests use `machine.cluster.MachineCluster`.
"""
