// Package redistest gives a test a real redis-server of its own, and a way to it that misbehaves.
// Start with Start; put a Proxy in between with Between. Where the kernel can, Cut cuts a connection to anything.
//
// Everything listens on free ports of the loopback address, keeps its files in the test's own folder,
// and has ended when the test has. Only processes that it has started are ever sent a signal.
package redistest
