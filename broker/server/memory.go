package server

import (
	"os"
	"runtime/debug"
)

// GCPercent is how much the heap of a replica may grow between two collections, in percent. A replica
// has little that stays and makes much that does not, so that Go's own 100 costs a fifth more
// processor time and saves a few megabytes.
const GCPercent = 400

// TuneMemory sets GCPercent for this process, unless GOGC says otherwise. A program that is a replica
// and nothing else calls it; GOMEMLIMIT bounds the whole, as always.
func TuneMemory() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(GCPercent)
	}
}
