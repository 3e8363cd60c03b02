package main

import (
	"cmp"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/errandhq/errand/sdk/wire"
	"github.com/spf13/cobra"
)

func newTaskTree() *cobra.Command {
	l := taskListing()
	cmd := &cobra.Command{
		Use:   "tree TASK",
		Short: "Show a task and everything below it as a tree",
		Long: `tree draws a task and all tasks below it, each with its own live grants. Ending a task ends everything
below it in the tree.
` + operatorsHelp,
		Args: oneTask,
		RunE: func(cmd *cobra.Command, args []string) error {
			return showTree(l, cmd, pathOf(wire.PathTaskTree, args[0]))
		},
	}
	l.flags(cmd, formats)
	columnsFlag(&l.asking, cmd, treeTable)
	l.limitFlag(cmd)
	completeArgs(cmd, taskIDs)
	return cmd
}

func showTree(l *listing[wire.TaskItem], cmd *cobra.Command, path string) error {
	if l.curl {
		return l.print(cmd, l.pageOf(path, url.Values{}, page{}))
	}
	all, err := l.fetch(cmd, path, url.Values{})
	if err != nil {
		return err
	}
	items, text, err := decodePage[wire.TaskItem](all)
	if err != nil {
		return err
	}
	l.tellMore(cmd, all)
	return treeTable(time.Now()).only(l.columns).show(cmd.OutOrStdout(), l.output, text, grow(items)...)
}

// branch is a task in its tree.
type branch struct {
	wire.TaskItem
	lead string // what is drawn before it
}

// grow puts tasks into the order of their trees, whatever order they come in. One whose parent is not among them is
// below the nearest that is.
func grow(items []wire.TaskItem) []branch {
	there := map[string]bool{}
	for _, item := range items {
		there[item.ID] = true
	}
	below := map[string][]wire.TaskItem{} // by parent; the roots are below ""
	for _, item := range items {
		parent := ""
		for _, id := range item.Path {
			if id != item.ID && there[id] {
				parent = id
			}
		}
		below[parent] = append(below[parent], item)
	}
	out := make([]branch, 0, len(items))
	var draw func(parent, indent string)
	draw = func(parent, indent string) {
		children := below[parent]
		slices.SortFunc(children, func(a, b wire.TaskItem) int {
			return cmp.Or(a.BegunAt.Compare(b.BegunAt), cmp.Compare(a.ID, b.ID))
		})
		for i, child := range children {
			lead, deeper := "├─ ", "│  "
			switch {
			case parent == "":
				lead, deeper = "", ""
			case i == len(children)-1:
				lead, deeper = "└─ ", "   "
			}
			out = append(out, branch{child, indent + lead})
			draw(child.ID, indent+deeper)
		}
	}
	draw("", "")
	return out
}

// treeTable is how a tree is shown.
func treeTable(now time.Time) table[branch] {
	grants := func(b branch) string {
		if b.LiveGrants == nil {
			return ""
		}
		return strconv.Itoa(*b.LiveGrants)
	}
	return table[branch]{
		name: func(b branch) string { return b.ID },
		columns: []column[branch]{
			{head: "TASK", cell: func(b branch) string { return b.ID }, people: func(b branch) string { return b.lead + b.ID }},
			{head: "NAME", cell: func(b branch) string { return b.Name }},
			{head: "STATE", cell: func(b branch) string { return b.State }},
			{head: "WORKLOAD", cell: func(b branch) string { return b.Workload }},
			{head: "BEGUN", cell: func(b branch) string { return rfc3339(&b.BegunAt) }, people: func(b branch) string { return ago(&b.BegunAt, now) }},
			{head: "LIVE GRANTS", cell: grants},
			{head: "ENDS", wide: true, cell: func(b branch) string { return rfc3339(due(b.Task)) }, people: func(b branch) string { return ahead(due(b.Task), now) }},
			{head: "CAUSE", wide: true, cell: func(b branch) string { return b.Cause }},
			{head: "OWNER", wide: true, cell: func(b branch) string { return b.Owner }},
			{head: "NOTE", wide: true, cell: func(b branch) string { return b.Note }},
			{head: "PURPOSE", wide: true, cell: func(b branch) string { return b.Purpose }},
		},
	}
}
