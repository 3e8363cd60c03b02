// Package steer is the door by which sdk/brokertest moves the time of clients and verifiers. Packages
// sdk and verify set these functions when they are linked in; nobody else does, and only brokertest
// calls them. They take and return any, since both sides would have to import each other otherwise.
package steer

import "time"

var (
	// Clock returns an sdk.Option: a client that reads both of its clocks from now. Its timers go on
	// by the real clock, so that it acts late unless Beat is called.
	Clock func(now func() time.Time) any

	// Beat has an *sdk.Client send the heartbeats of all its tasks, and end those that are over by its
	// clock. The error is why one was not answered.
	Beat func(client any) error

	// Stride is how far time may go on at once for the tasks of an *sdk.Client: a third of the
	// shortest lease, or zero without any.
	Stride func(client any) time.Duration

	// Unconfirmed has the IDs of the tasks whose end an *sdk.Client has not got confirmed.
	Unconfirmed func(client any) []string

	// Catch has a *verify.Verifier prove at once how fresh its view is, and fetch keys that have
	// become too old. It returns false when the verifier is closed.
	Catch func(verifier any) bool
)
