package httpapi

import (
	"context"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/sdk/wire"
)

// MaxListing bounds the requests for lists that are worked on at once: each may look at many pages of the store.
const MaxListing = 16

func (a *API) listTasks(ctx context.Context, r request[none]) (wire.TaskList, error) {
	req, err := listRequest(r.RawQuery)
	if err != nil {
		return wire.TaskList{}, err
	}
	page, err := a.Broker.ListTasks(ctx, req)
	if err != nil {
		return wire.TaskList{}, err
	}
	out := wire.TaskList{Items: []wire.TaskItem{}, NextCursor: page.Next}
	for _, task := range page.Tasks {
		out.Items = append(out.Items, a.taskItem(task))
	}
	return out, nil
}

func (a *API) listGrants(ctx context.Context, r request[none]) (wire.GrantList, error) {
	req, err := grantListRequest(r.RawQuery)
	if err != nil {
		return wire.GrantList{}, err
	}
	page, err := a.Broker.ListGrants(ctx, req)
	if err != nil {
		return wire.GrantList{}, err
	}
	out := wire.GrantList{Items: []wire.GrantItem{}, NextCursor: page.Next}
	for _, s := range page.Grants {
		out.Items = append(out.Items, a.grantItem(s))
	}
	return out, nil
}

func (a *API) showTask(ctx context.Context, r request[none]) (wire.TaskItem, error) {
	id, err := broker.ParseTaskID(r.ID)
	if err != nil {
		return wire.TaskItem{}, err
	}
	task, err := a.Broker.FindTask(ctx, id)
	if err != nil {
		return wire.TaskItem{}, err
	}
	return a.taskItem(task), nil
}

func (a *API) showGrant(ctx context.Context, r request[none]) (wire.GrantItem, error) {
	id, err := broker.ParseGrantID(r.ID)
	if err != nil {
		return wire.GrantItem{}, err
	}
	status, err := a.Broker.FindGrant(ctx, id)
	if err != nil {
		return wire.GrantItem{}, err
	}
	return a.grantItem(status), nil
}

func (a *API) tree(ctx context.Context, r request[none]) (wire.TaskList, error) {
	id, err := broker.ParseTaskID(r.ID)
	if err != nil {
		return wire.TaskList{}, err
	}
	values, err := parseQuery(r.RawQuery, "page_size", "cursor")
	if err != nil {
		return wire.TaskList{}, err
	}
	size, err := pageSize(values)
	if err != nil {
		return wire.TaskList{}, err
	}
	tree, next, err := a.Broker.Tree(ctx, id, size, values.Get("cursor"))
	if err != nil {
		return wire.TaskList{}, err
	}
	out := wire.TaskList{Items: []wire.TaskItem{}, NextCursor: next}
	for _, t := range tree {
		item := a.taskItem(t.Task)
		item.LiveGrants = &t.LiveGrants
		out.Items = append(out.Items, item)
	}
	return out, nil
}

func (a *API) taskItem(t broker.Task) wire.TaskItem {
	item := wire.TaskItem{Task: encodeTask(t)}
	if r, err := a.Registry.Workload(t.Workload); err == nil {
		item.Owner, item.Risk = r.Owner, r.Risk
	}
	return item
}

func (a *API) grantItem(s broker.GrantStatus) wire.GrantItem {
	item := wire.GrantItem{Grant: encodeGrant(s), TaskName: s.Task.Name, Purpose: s.Task.Purpose}
	for _, id := range s.Task.Path {
		item.TaskPath = append(item.TaskPath, string(id))
	}
	if r, err := a.Registry.Workload(s.Grant.Workload); err == nil {
		item.Owner = r.Owner
	}
	return item
}

// filterNames are those of a list's query, as wire.Selector has them.
var filterNames = []string{"workload", "owner", "risk", "audience", "scope", "name", "label", "ref", "root", "task", "grant", "issued_before", "state"}

// parseQuery reads a query that has no other names than these, and none of those that have one value twice.
func parseQuery(raw string, names ...string) (url.Values, error) {
	values, err := url.ParseQuery(raw)
	if err != nil {
		return nil, &malformed{"the query cannot be read: " + short(err.Error())}
	}
	for _, name := range slices.Sorted(maps.Keys(values)) {
		if !slices.Contains(names, name) {
			return nil, unknownName(name, names)
		}
		if once := []string{"ref", "root", "issued_before", "page_size", "cursor"}; slices.Contains(once, name) && len(values[name]) > 1 {
			return nil, &broker.Invalid{Field: name, Detail: "is there more than once; it has one value"}
		}
		if slices.Contains(values[name], "") {
			return nil, &broker.Invalid{Field: name, Detail: "is empty; leave it out, or say which"}
		}
	}
	return values, nil
}

// unknownName is about a name of a query that is not known. A filter that did nothing would show more than was asked for.
func unknownName(name string, names []string) error {
	alike := strings.TrimSuffix(strings.ReplaceAll(strings.ToLower(name), "-", "_"), "s")
	for _, known := range names {
		if alike == known || len(alike) > 2 && (strings.HasPrefix(known, alike) || strings.HasPrefix(alike, known)) {
			return &malformed{fmt.Sprintf("%.64q in the query is not known; did you mean %s?", name, known)}
		}
	}
	return &malformed{fmt.Sprintf("%.64q in the query is not known; there are %s", name, strings.Join(names, ", "))}
}

func listRequest(raw string) (req broker.ListRequest, err error) {
	values, err := parseQuery(raw, append(slices.Clone(filterNames), "page_size", "cursor")...)
	if err != nil {
		return req, err
	}
	selector, err := querySelector(values)
	if err != nil {
		return req, err
	}
	if req.Filter, err = filterOf("", selector); err != nil {
		return req, err
	}
	for _, state := range values["state"] {
		req.States = append(req.States, broker.State(state))
	}
	req.Size, err = pageSize(values)
	req.Cursor = values.Get("cursor")
	return req, err
}

// grantListRequest takes states as those of a grant.
func grantListRequest(raw string) (broker.ListRequest, error) {
	req, err := listRequest(raw)
	for _, state := range req.States {
		switch state {
		case wire.GrantLive:
			req.Live = true
		case wire.GrantDead:
			req.Dead = true
		default:
			return req, &broker.Invalid{Field: "state", Detail: "is not that of a grant; there are live and dead"}
		}
	}
	req.States = nil
	return req, err
}

func pageSize(values url.Values) (int, error) {
	text := values.Get("page_size")
	if text == "" {
		return 0, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n > broker.MaxPage {
		return 0, &broker.Invalid{Field: "page_size", Detail: fmt.Sprintf("must be a number from 1 to %d; leave it out for %d", broker.MaxPage, broker.DefaultPageSize)}
	}
	return n, nil
}

// querySelector reads the members of a selector from a query that parseQuery has read.
func querySelector(values url.Values) (s wire.Selector, err error) {
	s = wire.Selector{
		Workload: values["workload"], Owner: values["owner"], Risk: values["risk"], Audience: values["audience"], Scope: values["scope"],
		Name: values["name"], Ref: values.Get("ref"), Root: values.Get("root"), Task: values["task"], Grant: values["grant"],
	}
	for _, label := range values["label"] {
		key, value, ok := strings.Cut(label, "=")
		if _, twice := s.Label[key]; !ok || twice {
			return s, &broker.Invalid{Field: "label", Detail: "must be a name and its value, as label=env=prod, and each name once"}
		}
		if s.Label == nil {
			s.Label = map[string]string{}
		}
		s.Label[key] = value
	}
	if text := values.Get("issued_before"); text != "" {
		at, err := time.Parse(time.RFC3339, text)
		if err != nil {
			return s, &broker.Invalid{Field: "issued_before", Detail: "is not a moment as RFC 3339 writes it, as 2026-03-01T12:00:00Z"}
		}
		s.IssuedBefore = &at
	}
	return s, nil
}

// filterOf is the domain's form of a selector, which the domain checks. The field of errors begins with prefix.
func filterOf(prefix string, s wire.Selector) (broker.Filter, error) {
	f := broker.Filter{
		Workloads: s.Workload, Owners: s.Owner, Risks: s.Risk, Audiences: s.Audience, Scopes: s.Scope, Names: s.Name,
		Labels: s.Label, Root: broker.TaskID(s.Root), All: s.All,
	}
	if s.Ref != "" {
		f.Ref.Kind, f.Ref.ID, _ = strings.Cut(s.Ref, ":")
		if f.Ref.Kind == "" || f.Ref.ID == "" {
			return f, &broker.Invalid{Field: prefix + "ref", Detail: `must be a kind and an ID with a colon between them, as "k8s/job:8e1f"`}
		}
	}
	for _, id := range s.Task {
		f.Tasks = append(f.Tasks, broker.TaskID(id))
	}
	for _, id := range s.Grant {
		f.Grants = append(f.Grants, broker.GrantID(id))
	}
	if s.IssuedBefore != nil {
		if year := s.IssuedBefore.UTC().Year(); year < 1970 || year > 9999 { // the zero time would filter nothing
			return f, &broker.Invalid{Field: prefix + "issued_before", Detail: "is not a moment at which there were grants"}
		}
		f.IssuedBefore = s.IssuedBefore.UTC()
	}
	return f, nil
}
