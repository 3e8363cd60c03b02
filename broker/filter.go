package broker

import (
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"
)

// Bounds of a Filter. One more is ErrInvalid.
const (
	MaxFilterValues = 100     // of one member
	MaxFilterBytes  = 8 << 10 // of all of it, as JSON
)

// Filter says which tasks and grants an operator means. The members are a conjunction, the values of one a
// disjunction. A grant is meant with its task's properties and its own; a task with its ceiling in the place of a
// grant's audience and scopes.
type Filter struct {
	Workloads []string          `json:",omitempty"` // SPIFFE IDs, or ones that end in "/*": any of Task.Subjects
	Owners    []string          `json:",omitempty"` // of a subject's registration
	Risks     []string          `json:",omitempty"` // of the same one
	Audiences []string          `json:",omitempty"`
	Scopes    []string          `json:",omitempty"`
	Names     []string          `json:",omitempty"` // of the task
	Labels    map[string]string `json:",omitempty"` // of the task, all of them
	Ref       TaskRef           `json:",omitzero"`  // of the task; the URL is not looked at
	Root      TaskID            `json:",omitempty"` // the whole tree of it
	Tasks     []TaskID          `json:",omitempty"` // these and all below them
	Grants    []GrantID         `json:",omitempty"`

	// IssuedBefore is of grants alone, by the store's clock.
	IssuedBefore time.Time `json:",omitzero"`

	// All means everything, and goes with no other member. A list needs no filter for that.
	All bool `json:",omitempty"`
}

// IsZero reports whether nothing is named, not even everything.
func (f Filter) IsZero() bool {
	return f.isPure() && len(f.Workloads)+len(f.Owners)+len(f.Risks)+len(f.Audiences)+len(f.Scopes) == 0 && !f.All
}

// isPure reports whether the filter has no member but those that a Selector, or DenyAll, can say.
func (f Filter) isPure() bool {
	return len(f.Names)+len(f.Labels)+len(f.Tasks)+len(f.Grants) == 0 && f.Ref == TaskRef{} && f.Root == "" && f.IssuedBefore.IsZero()
}

// Check returns the filter with its values sorted and each of them once. Errors: ErrInvalid.
func (f Filter) Check() (Filter, error) {
	err := f.normalize("")
	return f, err
}

// normalize sorts the values, drops those that are there twice, and checks the bounds. The field of its errors begins with
// prefix.
func (f *Filter) normalize(prefix string) error {
	for _, member := range []struct {
		name   string
		values *[]string
		check  func(field, value string) error
	}{
		{"workload", &f.Workloads, checkSubject}, {"owner", &f.Owners, checkFilterText}, {"risk", &f.Risks, checkFilterText},
		{"audience", &f.Audiences, checkFilterText}, {"scope", &f.Scopes, checkFilterText}, {"name", &f.Names, checkFilterText},
	} {
		if err := normalizeValues(prefix+member.name, member.values, member.check); err != nil {
			return err
		}
	}
	if err := normalizeValues(prefix+"task", &f.Tasks, checkTaskID); err != nil {
		return err
	}
	if err := normalizeValues(prefix+"grant", &f.Grants, checkGrantID); err != nil {
		return err
	}
	if f.Root != "" {
		if err := checkTaskID(prefix+"root", f.Root); err != nil {
			return err
		}
	}
	if err := checkLabels(f.Labels); err != nil {
		return &Invalid{Field: prefix + "label", Detail: "cannot be a task's: " + err.(*Invalid).Detail}
	}
	if err := f.Ref.check(); err != nil {
		return invalid(prefix+"ref", `must be a kind and an ID with a colon between them, as "k8s/job:8e1f": %s`, err.(*Invalid).Detail)
	}
	f.Ref.URL = ""
	if len(f.Labels) == 0 {
		f.Labels = nil
	}
	f.IssuedBefore = f.IssuedBefore.UTC()
	if f.All && !(Filter{All: true}).same(*f) {
		return invalid(prefix+"all", "goes with no other member; leave it out, or the others")
	}
	if n := len(f.text()); n > MaxFilterBytes {
		return invalid(strings.TrimSuffix(prefix+"selector", "."), "has %d bytes as JSON; at most %d are allowed: name fewer things, or what they have in common", n, MaxFilterBytes)
	}
	return nil
}

func normalizeValues[T ~string](field string, values *[]T, check func(string, T) error) error {
	if len(*values) > MaxFilterValues {
		return invalid(field, "has %d values; at most %d are allowed", len(*values), MaxFilterValues)
	}
	for _, value := range *values {
		if err := check(field, value); err != nil {
			return err
		}
	}
	*values = slices.Compact(slices.Sorted(slices.Values(*values))) // nil for none
	return nil
}

func checkFilterText(field, value string) error {
	if value == "" {
		return invalid(field, "is empty; leave it out, or name one")
	}
	return checkLine(field, value, MaxPurpose)
}

func checkTaskID(field string, id TaskID) error {
	if _, err := ParseTaskID(string(id)); err != nil {
		return invalid(field, "is not the ID of a task; one begins with tsk_ and has 32 characters")
	}
	return nil
}

func checkGrantID(field string, id GrantID) error {
	if _, err := ParseGrantID(string(id)); err != nil {
		return invalid(field, "is not the ID of a grant; one begins with gnt_ and has 32 characters")
	}
	return nil
}

// text is the canonical form: the same for filters that mean the same, once they are normalized.
func (f Filter) text() string {
	return string(plainJSON(f))
}

func (f Filter) same(g Filter) bool { return f.text() == g.text() }

// String is for people, and in the form of a list's query: "audience=orders&workload=spiffe://…".
func (f Filter) String() string {
	var parts []string
	add := func(name string, values ...string) {
		for _, value := range values {
			parts = append(parts, name+"="+value)
		}
	}
	add("workload", f.Workloads...)
	add("owner", f.Owners...)
	add("risk", f.Risks...)
	add("audience", f.Audiences...)
	add("scope", f.Scopes...)
	add("name", f.Names...)
	for _, key := range slices.Sorted(maps.Keys(f.Labels)) {
		add("label", key+"="+f.Labels[key])
	}
	if f.Ref != (TaskRef{}) {
		add("ref", f.Ref.Kind+":"+f.Ref.ID)
	}
	if f.Root != "" {
		add("root", string(f.Root))
	}
	for _, id := range f.Tasks {
		add("task", string(id))
	}
	for _, id := range f.Grants {
		add("grant", string(id))
	}
	if !f.IssuedBefore.IsZero() {
		add("issued_before", f.IssuedBefore.UTC().Format(time.RFC3339Nano))
	}
	if f.All {
		add("all", "true")
	}
	for i, part := range parts { // so that no value can look like two
		name, value, _ := strings.Cut(part, "=")
		if strings.ContainsAny(value, "&%+;# ") {
			parts[i] = name + "=" + url.QueryEscape(value)
		}
	}
	return strings.Join(parts, "&")
}

// matcher is a filter with the inventory's word on owners and risk classes.
type matcher struct {
	Filter
	anybody bool            // whoever the subject is
	exact   map[string]bool // else these,
	below   []string        // and those that begin so
}

// matcher reads the inventory once, so that a scan has one view of it.
func (b *Broker) matcher(f Filter) matcher {
	subjects, anybody := b.subjects(f)
	m := matcher{Filter: f, anybody: anybody, exact: map[string]bool{}}
	for _, subject := range subjects {
		if prefix, ok := strings.CutSuffix(subject, "*"); ok {
			m.below = append(m.below, prefix)
		} else {
			m.exact[subject] = true
		}
	}
	return m
}

// subjects are the SPIFFE IDs, and the ones that end in /*, that a filter means. One that names owners or risk
// classes means registered workloads alone.
func (b *Broker) subjects(f Filter) (subjects []string, anybody bool) {
	if len(f.Owners)+len(f.Risks) == 0 {
		return f.Workloads, len(f.Workloads) == 0
	}
	for _, r := range b.Registry.Workloads() {
		if (len(f.Owners) == 0 || slices.Contains(f.Owners, r.Owner)) && (len(f.Risks) == 0 || slices.Contains(f.Risks, r.Risk)) &&
			(len(f.Workloads) == 0 || slices.ContainsFunc(f.Workloads, func(w string) bool { return Selector{Subject: w}.MatchesSubject(r.ID.String()) })) {
			subjects = append(subjects, r.ID.String())
		}
	}
	return subjects, false
}

// Unknown are the names of a filter that the inventory does not have, in the form of a list's query: mostly they are
// misspelt. It is no error, since what is gone from the inventory may still have tokens.
func (b *Broker) Unknown(f Filter) []string {
	all := b.Registry.Workloads()
	var out []string
	look := func(name string, values []string, has func(value string) bool) {
		for _, value := range values {
			if !has(value) {
				out = append(out, name+"="+value)
			}
		}
	}
	some := func(is func(r WorkloadRegistration, value string) bool) func(string) bool {
		return func(value string) bool {
			return slices.ContainsFunc(all, func(r WorkloadRegistration) bool { return is(r, value) })
		}
	}
	look("workload", f.Workloads, some(func(r WorkloadRegistration, w string) bool { return Selector{Subject: w}.MatchesSubject(r.ID.String()) }))
	look("owner", f.Owners, some(func(r WorkloadRegistration, owner string) bool { return r.Owner == owner }))
	look("risk", f.Risks, some(func(r WorkloadRegistration, risk string) bool { return r.Risk == risk }))
	look("audience", f.Audiences, func(name string) bool {
		_, err := b.Registry.Audience(name)
		return err == nil
	})
	return out
}

// task reports whether a task has what the filter says of tasks. Audiences and scopes are left aside.
func (m matcher) task(t Task) bool {
	for key, value := range m.Labels {
		if got, ok := t.Labels[key]; !ok || got != value {
			return false
		}
	}
	return (len(m.Names) == 0 || slices.Contains(m.Names, t.Name)) &&
		(m.Ref == TaskRef{} || m.Ref.Kind == t.Ref.Kind && m.Ref.ID == t.Ref.ID) &&
		(m.Root == "" || m.Root == t.Root()) &&
		(len(m.Tasks) == 0 || slices.ContainsFunc(t.Path, func(id TaskID) bool { return slices.Contains(m.Tasks, id) })) &&
		(m.anybody || slices.ContainsFunc(t.Subjects(), m.subject))
}

func (m matcher) subject(id string) bool {
	return m.exact[id] || slices.ContainsFunc(m.below, func(prefix string) bool { return strings.HasPrefix(id, prefix) })
}

// matches reports whether a record is meant: a grant's with its task, or a task's.
func (m matcher) matches(r Record) bool {
	audiences, scopes := r.Task.Ceiling.Audiences, r.Task.Ceiling.Scopes
	if g := r.Grant; g.ID != "" {
		if len(m.Grants) > 0 && !slices.Contains(m.Grants, g.ID) || !m.IssuedBefore.IsZero() && !g.Issued.Before(m.IssuedBefore) {
			return false
		}
		audiences, scopes = Audiences{g.Audience}, g.Scopes
	}
	return m.task(r.Task) &&
		(len(m.Audiences) == 0 || slices.ContainsFunc(m.Audiences, audiences.Contains)) &&
		(len(m.Scopes) == 0 || slices.ContainsFunc(m.Scopes, scopes.Contains))
}

// MaxSelectors bounds the entries of the control list that one revocation or lock makes.
const MaxSelectors = 100

// selectors are the control list's words for a filter that is pure: one for each combination. ErrInvalid when it
// means nobody, or needs too many. field is the filter's.
func (b *Broker) selectors(field string, f Filter) ([]Selector, error) {
	subjects, anybody := b.subjects(f)
	if !anybody && len(subjects) == 0 {
		return nil, invalid(field, "means no workload of the inventory: nobody there has such an owner and risk class; check the spelling")
	}
	orNone := func(values []string) []string {
		if len(values) == 0 {
			return []string{""}
		}
		return values
	}
	subjects, audiences, scopes := orNone(subjects), orNone(f.Audiences), orNone(f.Scopes)
	if n := len(subjects) * len(audiences) * len(scopes); n > MaxSelectors {
		return nil, invalid(field, "means %d combinations of workload, audience and scope; at most %d go at once: name fewer, or workloads by what they begin with, as spiffe://prod/fin/*", n, MaxSelectors)
	}
	var out []Selector
	for _, subject := range subjects {
		for _, audience := range audiences {
			for _, scope := range scopes {
				out = append(out, Selector{Subject: subject, Audience: audience, Scope: scope})
			}
		}
	}
	return out, nil
}

// sources are where to look for what a filter means, so that everything which it can mean is in one of them. What
// an earlier one has is left out of a later one: see matcher.before.
func (f Filter) sources(grants bool) []source {
	var out []source
	switch query := (Query{Grants: grants}); {
	case grants && len(f.Grants) > 0:
		for _, id := range f.Grants {
			out = append(out, source{grant: id})
		}
	case len(f.Tasks) > 0:
		for _, id := range f.Tasks {
			query.Below = id
			out = append(out, source{Query: query})
		}
	case f.Root != "":
		query.Below = f.Root
		out = append(out, source{Query: query})
	case f.Ref != TaskRef{}:
		query.Ref = f.Ref
		out = append(out, source{Query: query})
	default:
		out = append(out, source{Query: query})
	}
	return out
}

// source is a query of the store, or one grant.
type source struct {
	Query
	grant GrantID
}

// before reports whether an earlier source than the i-th has a task.
func (m matcher) before(i int, t Task) bool {
	return len(m.Grants) == 0 && len(m.Tasks) > 0 &&
		slices.ContainsFunc(m.Tasks[:i], func(id TaskID) bool { return slices.Contains(t.Path, id) })
}

// checkTasksOnly refuses what is said of grants alone where tasks are meant.
func (f Filter) checkTasksOnly(prefix string) error {
	switch {
	case len(f.Grants) > 0:
		return invalid(prefix+"grant", "is about grants, and here tasks are meant; name their tasks")
	case !f.IssuedBefore.IsZero():
		return invalid(prefix+"issued_before", "is about grants, and here tasks are meant; leave it out")
	}
	return nil
}
