package sdk

import (
	"context"
	"fmt"
	"maps"
	"slices"
)

// Child begins a task below this one, for a part of its work that is to have less, or to end earlier.
// It is as Begin in all else. An end of the parent, whoever makes it, takes all children along and
// theirs: in one write of the broker, and here at once, without a request for each.
//
// What the spec leaves empty of the ceiling is the parent's, though no details; what it names must be
// the parent's, or it is ErrScopeExceeded. An empty Purpose is the parent's, too, and a Deadline that is
// later than the parent's is that one. A tree has at most 8 tasks from its root to the deepest one, and a
// task 1000 live children (ErrQuota). When the parent has ended, the error is ErrTaskEnded.
//
// The child's Context has the values of ctx and ends with the parent's.
func (t *Task) Child(ctx context.Context, spec TaskSpec) (*Task, error) {
	return t.beginChild(ctx, context.WithoutCancel(ctx), spec)
}

// DoChild is Do for a task below this one, as Child begins it. The context that fn gets ends with ctx, with
// the parent's Context, or as soon as the child is over.
func (t *Task) DoChild(ctx context.Context, spec TaskSpec, fn func(context.Context, *Task) error) error {
	child, err := t.beginChild(ctx, ctx, spec)
	if err != nil {
		return err
	}
	return child.do(ctx, fn)
}

func (t *Task) beginChild(ctx, base context.Context, spec TaskSpec) (*Task, error) {
	if spec.Parent != "" {
		return nil, fmt.Errorf("sdk: %w: TaskSpec.Parent is %q; a child of a Task has that one as its parent", ErrInvalid, spec.Parent)
	}
	if err := t.alive(ctx); err != nil {
		return nil, err
	}
	spec.Parent = t.id
	defaults := t.client.defaults.openCeiling()
	defaults.Purpose = t.purpose
	child, err := t.client.begin(ctx, base, origin{above: t}, spec.or(defaults))
	if err != nil {
		return nil, t.aboutThis(ctx, err)
	}
	return child, nil
}

// join has the task end with the one above it, at once if that is over already.
func (t *task) join() {
	if t.above == nil {
		return
	}
	t.above.mu.Lock()
	over := t.above.cause != nil && (t.above.state != Adopted || t.above.ending != nil)
	switch {
	case !over:
		if t.above.children == nil {
			t.above.children = map[*task]struct{}{}
		}
		t.above.children[t] = struct{}{}
	case t.above.ending != nil:
		t.above.ending.parts = append(t.above.ending.parts, t)
	}
	t.above.mu.Unlock()
	switch {
	case over:
		t.overFor(Canceled, causeParent, false)
	case t.ended() != nil: // a heartbeat was first
		t.leave()
	}
}

// leave is for a child that is over.
func (t *task) leave() {
	if t.above == nil {
		return
	}
	t.above.mu.Lock()
	defer t.above.mu.Unlock()
	delete(t.above.children, t)
}

// endChildren has all tasks below be over, as they are at the broker with the end of this one.
func (t *task) endChildren() {
	t.mu.Lock()
	children := slices.Collect(maps.Keys(t.children))
	if t.ending != nil {
		t.ending.parts = children
	}
	t.mu.Unlock()
	for _, child := range children {
		child.overFor(Canceled, causeParent, false)
	}
}

// covered reports whether nobody here need ask for an end of this task: it is another process's to end, or
// ends without that.
func (t *task) covered() bool { return t.current() == Adopted || t.ends() }

// ends reports whether the broker has told of an end of the task, or that of a task above is known or under
// way.
func (t *task) ends() bool {
	t.mu.Lock()
	known := t.known
	t.mu.Unlock()
	if known || t.above == nil {
		return known
	}
	t.above.mu.Lock()
	ending := t.above.ending != nil && t.above.state != Adopted
	t.above.mu.Unlock()
	if !ending && !t.above.ends() {
		return false
	}
	t.overFor(Canceled, causeParent, false) // that is about to be so
	return true
}
