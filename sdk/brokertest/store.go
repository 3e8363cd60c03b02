package brokertest

import (
	"context"
	"sync"

	"github.com/errandhq/errand/broker"
)

// store is a store in memory that notes what it grants, and delivers anew when the clock was moved:
// the age of what it had said before would count as silence.
type store struct {
	broker.Store
	clock *clock

	mu     sync.Mutex // guards all below
	issued []issued
	known  map[broker.GrantID]bool
	own    map[broker.TaskID]bool // tasks of Token
}

// issued is one grant with its task.
type issued struct {
	broker.Grant
	task broker.Task
}

func newStore(kept broker.Store, clock *clock) *store {
	return &store{Store: kept, clock: clock, known: map[broker.GrantID]bool{}, own: map[broker.TaskID]bool{}}
}

// Grant implements broker.Store.
func (s *store) Grant(ctx context.Context, req broker.GrantRequest) (broker.GrantReply, error) {
	reply, err := s.Store.Grant(ctx, req)
	if err != nil {
		return reply, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, g := range reply.Grants {
		if !s.known[g.ID] {
			s.known[g.ID] = true
			s.issued = append(s.issued, issued{g.Clone(), reply.Task.Clone()})
		}
	}
	return reply, nil
}

// Watch implements broker.Store.
func (s *store) Watch(ctx context.Context, from broker.Position, emit func(broker.Update) error) error {
	for {
		moved := s.clock.next()
		watching, cancel := context.WithCancel(ctx)
		done := make(chan struct{})
		go func() {
			defer close(done)
			select {
			case <-moved:
				cancel()
			case <-watching.Done():
			}
		}()
		err := s.Store.Watch(watching, from, func(u broker.Update) error {
			from = u.Position
			return emit(u)
		})
		again := watching.Err() != nil && ctx.Err() == nil
		cancel()
		<-done
		if !again {
			return err
		}
	}
}

// adopt marks a task that Token has begun, and not the test.
func (s *store) adopt(id broker.TaskID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.own[id] = true
}

func (s *store) owns(id broker.TaskID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.own[id]
}

// grants are all that were issued so far, in their order.
func (s *store) grants() []issued {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]issued(nil), s.issued...)
}
