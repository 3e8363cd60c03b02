//go:build !unix

package exec

import (
	"context"
	"errors"
)

// Run is not there on this system: neither its signals nor its folders protect what Run promises.
func Run(context.Context, Config) (int, error) {
	return CodeFailed, errors.New("errand exec does not support this operating system; run it on Linux or macOS, or use the SDK")
}
