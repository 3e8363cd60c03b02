package main

import (
	"maps"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/errandhq/errand/cmd/errand/internal/api"
	"github.com/errandhq/errand/sdk/wire"
	"github.com/spf13/cobra"
)

// selecting is the flags that say what a command is about. Flags are a conjunction, the values of one a
// disjunction.
type selecting struct {
	wire.Selector
	labels []string
	before string
}

// Flags of a selector. Those of lockable name what a lock can be on.
var (
	lockable    = []string{"workload", "owner", "risk", "audience", "scope"}
	selectors   = append(slices.Clone(lockable), "name", "label", "ref", "root", "task", "grant", "issued-before")
	selectHelp  = "--" + strings.Join(selectors, ", --")
	lockingHelp = "--" + strings.Join(lockable, ", --")
)

// flags adds those of the given names.
func (s *selecting) flags(cmd *cobra.Command, names []string) {
	f := cmd.Flags()
	for _, name := range names {
		switch name {
		case "workload":
			f.StringArrayVar(&s.Workload, name, nil, "a workload's SPIFFE ID, or one that ends in /* and means all below it; repeat any of these for more")
		case "owner":
			f.StringArrayVar(&s.Owner, name, nil, "an owner of workloads, as the inventory has it")
		case "risk":
			f.StringArrayVar(&s.Risk, name, nil, "a risk class of workloads, as the inventory has it")
		case "audience":
			f.StringArrayVar(&s.Audience, name, nil, "an audience")
		case "scope":
			f.StringArrayVar(&s.Scope, name, nil, "a scope")
		case "name":
			f.StringArrayVar(&s.Name, name, nil, "a name of tasks")
		case "label":
			f.StringArrayVar(&s.labels, name, nil, "a label of tasks, as env=prod; all of several must be there")
		case "ref":
			f.StringVar(&s.Ref, name, "", "the ref of tasks, as KIND:ID")
		case "root":
			f.StringVar(&s.Root, name, "", "a root task, for its whole tree")
		case "task":
			f.StringArrayVar(&s.Task, name, nil, "a task, and all below it")
		case "grant":
			f.StringArrayVar(&s.Grant, name, nil, "a grant")
		case "issued-before":
			f.StringVar(&s.before, name, "", "grants issued before this, by the broker's clock, as 2026-11-26T03:12:00Z")
		}
	}
	completeSelector(cmd, names)
}

// resolve reads what the flags have. A value that is empty is a mistake, and never means everything.
func (s *selecting) resolve(cmd *cobra.Command) (wire.Selector, error) {
	out := s.Selector
	for _, name := range selectors {
		if flag := cmd.Flag(name); flag != nil && flag.Changed && (slices.Contains(flagValues(cmd, name), "") || len(flagValues(cmd, name)) == 0) {
			return out, usage(cmd, "--%s is empty: give it a value, or leave it out", name)
		}
	}
	var err error
	if out.Label, err = parseLabels(cmd, s.labels); err != nil {
		return out, err
	}
	if s.before != "" {
		at, err := time.Parse(time.RFC3339, s.before)
		if err != nil {
			return out, usage(cmd, "--issued-before is %q; give a time as 2026-11-26T03:12:00Z", s.before)
		}
		at = at.UTC()
		out.IssuedBefore = &at
	}
	return out, nil
}

// members are what a selector has, in the order of the flags.
func members(s wire.Selector) (out [][2]string) {
	put := func(name string, values ...string) {
		for _, value := range values {
			if value != "" {
				out = append(out, [2]string{name, value})
			}
		}
	}
	put("workload", s.Workload...)
	put("owner", s.Owner...)
	put("risk", s.Risk...)
	put("audience", s.Audience...)
	put("scope", s.Scope...)
	put("name", s.Name...)
	for _, name := range slices.Sorted(maps.Keys(s.Label)) {
		put("label", name+"="+s.Label[name])
	}
	put("ref", s.Ref)
	put("root", s.Root)
	put("task", s.Task...)
	put("grant", s.Grant...)
	if s.IssuedBefore != nil {
		put("issued-before", s.IssuedBefore.UTC().Format(time.RFC3339Nano))
	}
	return out
}

// query is a selector as that of a list.
func query(s wire.Selector) url.Values {
	out := url.Values{}
	for _, m := range members(s) {
		out.Add(strings.ReplaceAll(m[0], "-", "_"), m[1])
	}
	return out
}

// asFlags is a selector as a command line has it.
func asFlags(s wire.Selector) string {
	var words []string
	for _, m := range members(s) {
		words = append(words, "--"+m[0], word(m[1]))
	}
	if s.All {
		words = append(words, "--all")
	}
	return strings.Join(words, " ")
}

// plainWord needs no quotes in a shell.
var plainWord = regexp.MustCompile(`^[A-Za-z0-9_:/.,=@%+-]+$`)

// word is one argument of a command line that can be pasted.
func word(text string) string {
	if plainWord.MatchString(text) {
		return text
	}
	return api.Quote(text)
}

// canLock says that a selector has nothing that a lock cannot have.
func canLock(s wire.Selector) bool {
	return !slices.ContainsFunc(members(s), func(m [2]string) bool { return !slices.Contains(lockable, m[0]) })
}
