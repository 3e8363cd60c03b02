package httpapi

import (
	"context"
	"time"
)

const (
	// placeWait is how long a request waits for a place. With what the store may take it stays under a
	// second.
	placeWait = 100 * time.Millisecond
	// waitersPerPlace bounds how many wait.
	waitersPerPlace = 4
)

// places are what one kind of request may take at once.
type places struct {
	taken   chan struct{}
	waiting chan struct{}
}

func newPlaces(n int) *places {
	return &places{taken: make(chan struct{}, n), waiting: make(chan struct{}, waitersPerPlace*n)}
}

// enter takes a place; leave gives it back. Those who wait get one in the order in which they came.
func (p *places) enter(ctx context.Context) error {
	select {
	case p.taken <- struct{}{}:
		return nil
	default:
	}
	select {
	case p.waiting <- struct{}{}:
	default:
		return errOverloaded
	}
	defer func() { <-p.waiting }()
	patience := time.NewTimer(placeWait)
	defer patience.Stop()
	select {
	case p.taken <- struct{}{}:
		return nil
	case <-patience.C:
	case <-ctx.Done():
	}
	return errOverloaded
}

func (p *places) leave() { <-p.taken }
