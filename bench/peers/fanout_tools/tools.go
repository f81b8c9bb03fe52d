//go:build tools

// Package tools names what `make peers` builds, so that go.mod and go.sum pin it.
package tools

import (
	_ "github.com/nats-io/nats-server/v2"
)
