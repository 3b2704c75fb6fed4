//go:build tools

// Package testbed names the command that renders the chart, so that go.mod and go.sum pin it.
package testbed

import (
	_ "helm.sh/helm/v3/cmd/helm"
)
