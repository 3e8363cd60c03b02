package main

import (
	"net/http"
	"slices"
	"strconv"

	"github.com/errandhq/errand/cmd/errand/internal/api"
	"github.com/errandhq/errand/sdk/wire"
	"github.com/spf13/cobra"
)

// choices is where an operator's completions come from: a list, and what to take from each of its items.
type choices struct {
	path string
	from func(item) []string
}

// item is what completions need of a task, a grant or a lock.
type item struct {
	ID       string   `json:"id"`
	Workload string   `json:"workload"`
	Owner    string   `json:"owner"`
	Risk     string   `json:"risk"`
	Audience string   `json:"audience"`
	Name     string   `json:"name"`
	Root     string   `json:"root"`
	Scopes   []string `json:"scopes"`
}

// Where completions come from. Those of lists are of their first page.
var (
	taskIDs     = choices{wire.PathTasks, func(i item) []string { return []string{i.ID} }}
	grantIDs    = choices{wire.PathGrants, func(i item) []string { return []string{i.ID} }}
	lockIDs     = choices{wire.PathLocks, func(i item) []string { return []string{i.ID} }}
	workloadIDs = choices{wire.PathTasks, func(i item) []string { return []string{i.Workload} }}

	selectorChoices = map[string]choices{
		"workload": workloadIDs,
		"owner":    {wire.PathTasks, func(i item) []string { return []string{i.Owner} }},
		"risk":     {wire.PathTasks, func(i item) []string { return []string{i.Risk} }},
		"audience": {wire.PathGrants, func(i item) []string { return []string{i.Audience} }},
		"scope":    {wire.PathTasks, func(i item) []string { return i.Scopes }},
		"name":     {wire.PathTasks, func(i item) []string { return []string{i.Name} }},
		"root":     {wire.PathTasks, func(i item) []string { return []string{i.Root} }},
		"task":     taskIDs,
		"grant":    grantIDs,
	}
)

// completeSelector completes those of a selector's flags that a command has.
func completeSelector(cmd *cobra.Command, names []string) {
	for _, name := range names {
		from, there := selectorChoices[name]
		if !there {
			from = choices{} // nothing, and no files
		}
		_ = cmd.RegisterFlagCompletionFunc(name, from.complete) // the flag is there
	}
}

// completeArgs completes the one argument of a command.
func completeArgs(cmd *cobra.Command, from choices) {
	cmd.ValidArgsFunction = func(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return from.complete(cmd, args, typed)
	}
}

// complete asks the broker, and has nothing when it does not answer in time.
func (c choices) complete(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	var values []string
	for _, i := range c.items(cmd) {
		values = append(values, c.from(i)...)
	}
	values = slices.DeleteFunc(values, func(v string) bool { return v == "" || oneCell(v) != v })
	slices.Sort(values)
	return slices.Compact(values), cobra.ShellCompDirectiveNoFileComp
}

func (c choices) items(cmd *cobra.Command) []item {
	if c.path == "" {
		return nil
	}
	ctx, cancel := quickly(cmd)
	defer cancel()
	a := asking{at: api.Operator}
	a.url, _ = cmd.Flags().GetString("operator-url") // or else the environment's
	broker, err := api.Open(ctx, a.environment(), a.at)
	if err != nil {
		return nil
	}
	defer func() { _ = broker.Close() }() // there is nobody to tell
	var list struct {
		Items []item `json:"items"`
		Locks []item `json:"locks"`
	}
	path := c.path
	if path != wire.PathLocks {
		path += "?page_size=" + strconv.Itoa(pageSize)
	}
	if _, err := broker.Send(ctx, api.Request{Method: http.MethodGet, Path: path}, &list); err != nil {
		return nil
	}
	return append(list.Items, list.Locks...)
}
