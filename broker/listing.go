package broker

import (
	"context"
	"errors"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
)

// Bounds of a list. A request looks at so many pages of the store, and begins none after so long: then it answers with what
// it has, and a cursor.
const (
	DefaultPageSize = 50

	maxListPages = 40
	listTime     = 400 * time.Millisecond
	listCall     = storeBudget // one page of the store

	// treeReads is how many tasks of a tree have their grants counted at once.
	treeReads = 16
)

// ListRequest asks for a page of tasks or grants, of whomever.
type ListRequest struct {
	Filter Filter  // everything when it is empty; never All
	States []State // of tasks: those in one of them; none: all
	Live   bool    // of grants: only those whose token is good,
	Dead   bool    // or only those whose token is not; both are all, as neither
	Size   int     // 1 to MaxPage; DefaultPageSize when zero
	Cursor string  // the Next of the page before; "" begins
}

// TaskList is a page of tasks. It may have fewer than were asked for, or none, and go on all the same.
type TaskList struct {
	Tasks []Task
	Next  string // "" when nothing follows
}

// GrantList is a page of grants, as TaskList.
type GrantList struct {
	Grants []GrantStatus
	Next   string
}

// ListTasks returns a page of the tasks that a filter means, in an order that stays. Errors: ErrInvalid, ErrNotReady
// and those of the store.
func (b *Broker) ListTasks(ctx context.Context, req ListRequest) (TaskList, error) {
	if err := req.normalizeTasks(); err != nil {
		return TaskList{}, err
	}
	found, next, err := b.list(ctx, req, false)
	return TaskList{Tasks: tasksOf(found), Next: next}, err
}

// ListGrants returns a page of the grants that a filter means, as ListTasks.
func (b *Broker) ListGrants(ctx context.Context, req ListRequest) (GrantList, error) {
	if err := req.normalizeGrants(); err != nil {
		return GrantList{}, err
	}
	found, next, err := b.list(ctx, req, true)
	return GrantList{Grants: found, Next: next}, err
}

func tasksOf(found []GrantStatus) []Task {
	tasks := make([]Task, len(found))
	for i, s := range found {
		tasks[i] = s.Task
	}
	return tasks
}

// TreeTask is a task with how many of its own grants are live.
type TreeTask struct {
	Task
	LiveGrants int
}

// Tree returns a page of a task and all below it, and the cursor of the next one. Errors: ErrNotFound, and as ListTasks.
func (b *Broker) Tree(ctx context.Context, id TaskID, size int, cursor string) (tree []TreeTask, next string, err error) {
	if _, err := b.FindTask(ctx, id); err != nil {
		return nil, "", err
	}
	page, err := b.ListTasks(ctx, ListRequest{Filter: Filter{Tasks: []TaskID{id}}, Size: size, Cursor: cursor})
	if err != nil {
		return nil, "", err
	}
	tree = make([]TreeTask, len(page.Tasks))
	all, ctx := errgroup.WithContext(ctx)
	all.SetLimit(treeReads)
	for i, task := range page.Tasks {
		tree[i].Task = task
		if task.State.Final() {
			continue // and so has no live grant
		}
		all.Go(func() error {
			return b.pages(ctx, source{Query: Query{Grants: true, Of: task.ID}}, func(found []GrantStatus) error {
				for _, s := range found {
					if s.Live {
						tree[i].LiveGrants++
					}
				}
				return nil
			})
		})
	}
	return tree, page.Next, all.Wait()
}

// FindTask returns a task, whoever's it is, as of the store's time. Errors: ErrNotFound and those of the store.
func (b *Broker) FindTask(ctx context.Context, id TaskID) (Task, error) {
	ctx, cancel := context.WithTimeout(ctx, storeBudget)
	defer cancel()
	record, err := b.Store.Lookup(ctx, Ref{Task: id})
	return b.pending.task(record.Task), err
}

// FindGrant returns a grant, whoever's it is, as of the store's time. Errors: ErrNotFound and those of the store.
func (b *Broker) FindGrant(ctx context.Context, id GrantID) (GrantStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, storeBudget)
	defer cancel()
	record, err := b.Store.Lookup(ctx, Ref{Grant: id})
	if err != nil {
		return GrantStatus{}, err
	}
	record.Task = b.pending.task(record.Task)
	return b.grantStatus(ctx, record)
}

func (req *ListRequest) normalizeTasks() error {
	for _, state := range req.States {
		switch state {
		case Active, Completed, Failed, Canceled, Lapsed, Expired, Revoked:
		default:
			return invalid("state", "is not that of a task; there are active, completed, failed, canceled, lapsed, expired and revoked")
		}
	}
	if err := req.Filter.checkTasksOnly(""); err != nil {
		return err
	}
	req.States = slices.Compact(slices.Sorted(slices.Values(req.States)))
	return req.normalize()
}

func (req *ListRequest) normalizeGrants() error {
	if req.Live == req.Dead {
		req.Live, req.Dead = true, true
	}
	return req.normalize()
}

func (req *ListRequest) normalize() error {
	if req.Size == 0 {
		req.Size = DefaultPageSize
	}
	if req.Size < 1 || req.Size > MaxPage {
		return invalid("page_size", "is %d; it must be 1 to %d, or be left out for %d", req.Size, MaxPage, DefaultPageSize)
	}
	if req.Filter.All {
		return invalid("all", "is not for lists: without a filter one has everything")
	}
	return req.Filter.normalize("")
}

// wants reports whether a list has what its filter means in the state that it is in.
func (req ListRequest) wants(s GrantStatus) bool {
	if s.Grant.ID == "" {
		return len(req.States) == 0 || slices.Contains(req.States, s.Task.State)
	}
	return s.Live && req.Live || !s.Live && req.Dead
}

// list fills one page.
func (b *Broker) list(ctx context.Context, req ListRequest, grants bool) (found []GrantStatus, next string, err error) {
	from, err := b.openCursor(req, grants)
	if err != nil {
		return nil, "", err
	}
	m, sources := b.matcher(req.Filter), req.Filter.sources(grants)
	began := b.Now()
	for page := 0; from.Source < len(sources); page++ {
		if len(found) == req.Size || page == maxListPages || b.Now().Sub(began) >= listTime {
			return found, b.sealCursor(req, grants, from), nil
		}
		at := sources[from.Source]
		at.After, at.Limit = from.After, MaxPage
		if !req.selective() {
			at.Limit = req.Size - len(found)
		}
		some, after, err := b.read(ctx, at)
		if err != nil {
			return nil, "", err
		}
		from.After = after
		for _, s := range some {
			if !m.matches(s.record()) || m.before(from.Source, s.Task) || !req.wants(s) {
				continue
			}
			if len(found) == req.Size {
				from.After = placeOf(found[len(found)-1]).String()
				return found, b.sealCursor(req, grants, from), nil
			}
			found = append(found, s)
		}
		if after == "" {
			from.Source++
		}
	}
	return found, "", nil
}

// selective reports whether much of what the store has may not be wanted.
func (req ListRequest) selective() bool {
	return !req.Filter.IsZero() || len(req.States) > 0 || req.Live != req.Dead
}

func placeOf(s GrantStatus) Place {
	if s.Grant.ID == "" {
		return Place{Task: s.Task.ID}
	}
	return PlaceOf(s.Grant)
}

// read returns one page of the store, with everything that is in force here, and the cursor of the next one.
func (b *Broker) read(ctx context.Context, from source) (found []GrantStatus, next string, err error) {
	if from.grant != "" {
		switch s, err := b.FindGrant(ctx, from.grant); {
		case err == nil:
			return []GrantStatus{s}, "", nil
		case errors.Is(err, ErrNotFound):
			return nil, "", nil
		default:
			return nil, "", err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, listCall)
	defer cancel()
	page, err := b.Store.List(ctx, from.Query)
	if err != nil {
		return nil, "", err
	}
	for _, task := range page.Tasks {
		found = append(found, GrantStatus{Task: b.pending.task(task)})
	}
	for _, r := range page.Grants {
		control, _, err := b.view.control(r.Grant.ID.Shard())
		if err != nil {
			return nil, "", err
		}
		r.Now, r.Task = page.Now, b.pending.task(r.Task)
		found = append(found, b.judge(r, control))
	}
	return found, page.Next, nil
}

// pages calls f with each page of a source.
func (b *Broker) pages(ctx context.Context, from source, f func([]GrantStatus) error) error {
	for {
		found, next, err := b.read(ctx, from)
		if err != nil {
			return err
		}
		if err := f(found); err != nil || next == "" {
			return err
		}
		from.After = next
	}
}

// scan calls f with what a filter means, page by page of the store, until f returns an error or there is no more. A page
// may have nothing of it.
func (b *Broker) scan(ctx context.Context, f Filter, grants bool, each func([]GrantStatus) error) error {
	m := b.matcher(f)
	for i, from := range f.sources(grants) {
		if err := b.pages(ctx, from, func(found []GrantStatus) error {
			return each(slices.DeleteFunc(found, func(s GrantStatus) bool { return !m.matches(s.record()) || m.before(i, s.Task) }))
		}); err != nil {
			return err
		}
	}
	return nil
}
