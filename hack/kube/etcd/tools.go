//go:build tools

// Package tools names the command that hack/env builds, so that go.mod and go.sum pin what it needs.
package tools

import _ "go.etcd.io/etcd/server/v3"
