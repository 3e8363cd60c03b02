package main

import (
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/errandhq/errand/cmd/errand/internal/api"
	"github.com/errandhq/errand/sdk/wire"
	"github.com/spf13/cobra"
)

func taskListing() *listing[wire.TaskItem] {
	return &listing[wire.TaskItem]{asking: asking{at: api.Operator}, what: "tasks", view: taskItemTable}
}

func newTaskList() *cobra.Command {
	l := taskListing()
	cmd := &cobra.Command{
		Use:   "list [FILTERS]",
		Short: "List the active tasks of all workloads, or those that filters choose",
		Long: `list shows the tasks of all workloads. One that has ended is forgotten half a minute after its last token
has expired.
` + operatorsHelp,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			q, err := l.query(cmd)
			if err != nil {
				return err
			}
			return l.list(cmd, wire.PathTasks, q)
		},
	}
	l.flags(cmd, formats)
	columnsFlag(&l.asking, cmd, l.view)
	l.filters(cmd, taskStates...)
	l.limitFlag(cmd)
	return cmd
}

// taskStates are those to filter by; the first one is the default.
var taskStates = []string{wire.StateActive, wire.StateCompleted, wire.StateFailed, wire.StateCanceled, wire.StateLapsed, wire.StateExpired, wire.StateRevoked}

func newTaskWatch() *cobra.Command {
	l := taskListing()
	l.view = taskWatchTable
	w := &watching[wire.TaskItem]{listing: l, path: wire.PathTasks, since: func(t wire.TaskItem) time.Time { return t.BegunAt }}
	cmd := &cobra.Command{
		Use:   "watch [FILTERS]",
		Short: "Watch the active tasks of all workloads, or those that filters choose, until Ctrl-C",
		Long:  "watch shows the tasks as they begin, change and end. " + watchHelp + "\n" + operatorsHelp,
		Args:  noArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return w.run(cmd) },
	}
	l.flags(cmd, watchFormats)
	columnsFlag(&l.asking, cmd, l.view)
	l.filters(cmd, taskStates...)
	return cmd
}

// taskItemTable is how operators see tasks.
func taskItemTable(now time.Time) table[wire.TaskItem] {
	own := taskTable(now)
	out := table[wire.TaskItem]{name: func(t wire.TaskItem) string { return own.name(t.Task) }}
	add := func(c column[wire.TaskItem]) { out.columns = append(out.columns, c) }
	for _, c := range own.columns {
		lifted := column[wire.TaskItem]{head: c.head, wide: c.wide, cell: func(t wire.TaskItem) string { return c.cell(t.Task) }}
		if c.people != nil {
			lifted.people = func(t wire.TaskItem) string { return c.people(t.Task) }
		}
		switch c.head {
		case "NAME":
			add(column[wire.TaskItem]{head: "WORKLOAD", cell: func(t wire.TaskItem) string { return t.Workload }})
		case "WORKLOAD":
			continue
		}
		add(lifted)
	}
	add(column[wire.TaskItem]{head: "OWNER", wide: true, cell: func(t wire.TaskItem) string { return t.Owner }})
	add(column[wire.TaskItem]{head: "RISK", wide: true, cell: func(t wire.TaskItem) string { return t.Risk }})
	add(column[wire.TaskItem]{head: "PATH", wide: true, cell: func(t wire.TaskItem) string { return strings.Join(t.Path, "/") }})
	add(column[wire.TaskItem]{head: "HOLDER", wide: true, cell: func(t wire.TaskItem) string { return strconv.Itoa(t.Holder) }})
	add(column[wire.TaskItem]{head: "DELEGATORS", wide: true, cell: func(t wire.TaskItem) string { return strings.Join(t.Delegators, " ") }})
	add(column[wire.TaskItem]{head: "LABELS", wide: true, cell: labelsOf})
	add(column[wire.TaskItem]{head: "REF", wide: true, cell: refOf})
	add(column[wire.TaskItem]{head: "NOTE", wide: true, cell: func(t wire.TaskItem) string { return t.Note }})
	return out
}

// taskWatchTable has the deadline in the place of the lease's end, of which a watch hears nothing while it is extended.
func taskWatchTable(now time.Time) table[wire.TaskItem] {
	out := taskItemTable(now)
	deadline := func(t wire.TaskItem) *time.Time {
		if t.EndedAt != nil {
			return nil
		}
		return &t.Deadline
	}
	for i, c := range out.columns {
		if c.head == "ENDS" {
			out.columns[i] = column[wire.TaskItem]{
				head: "DEADLINE", cell: func(t wire.TaskItem) string { return rfc3339(deadline(t)) },
				people: func(t wire.TaskItem) string { return ahead(deadline(t), now) },
			}
		}
	}
	return out
}

func labelsOf(t wire.TaskItem) string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(t.Labels)) {
		out = append(out, name+"="+t.Labels[name])
	}
	return strings.Join(out, " ")
}

func refOf(t wire.TaskItem) string {
	if t.Ref == nil {
		return ""
	}
	return t.Ref.Kind + ":" + t.Ref.ID
}
