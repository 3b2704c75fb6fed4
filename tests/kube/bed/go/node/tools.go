//go:build tools

// Package testbed names the commands that a node of the test bed is built from, so that go.mod and go.sum pin them.
package testbed

import (
	_ "k8s.io/kubernetes/cmd/kube-proxy"
	_ "k8s.io/kubernetes/cmd/kube-scheduler"
	_ "k8s.io/kubernetes/cmd/kubelet"
)
