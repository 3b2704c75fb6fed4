//go:build tools

// Package testbed names the command that the test bed is built from, so that go.mod and go.sum pin it.
package testbed

import _ "go.etcd.io/etcd/server/v3"
