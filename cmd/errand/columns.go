package main

import (
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// columnFormats are the values of -o that have columns.
var columnFormats = []string{"table", "wide", "csv"}

// columnsFlag adds --columns for what a command lists.
func columnsFlag[Row any](a *asking, cmd *cobra.Command, view func(time.Time) table[Row]) {
	known := view(time.Time{}).columnNames()
	cmd.Flags().StringSliceVar(&a.columns, "columns", nil, "the columns to show, in this order, of "+strings.Join(known, ","))
	_ = cmd.RegisterFlagCompletionFunc("columns", cobra.FixedCompletions(known, cobra.ShellCompDirectiveNoFileComp|cobra.ShellCompDirectiveNoSpace)) // the flag is there
	before := cmd.PreRunE
	cmd.PreRunE = func(cmd *cobra.Command, args []string) error {
		if err := before(cmd, args); err != nil || !cmd.Flag("columns").Changed {
			return err
		}
		if !slices.Contains(columnFormats, a.output) {
			return usage(cmd, "--columns is for what has columns, -o %s: -o %s is whole", strings.Join(columnFormats, ", -o "), a.output)
		}
		for i, name := range a.columns {
			a.columns[i] = strings.ToLower(strings.TrimSpace(name))
			if !slices.Contains(known, a.columns[i]) {
				return usage(cmd, "--columns has %q, and there is no such column; there are %s", name, strings.Join(known, ","))
			}
		}
		if len(a.columns) == 0 {
			return usage(cmd, "--columns names none; there are %s", strings.Join(known, ","))
		}
		return nil
	}
}

// columnName is what a column is called in a command line.
func (c column[Row]) columnName() string {
	return strings.ReplaceAll(strings.ToLower(c.head), " ", "-")
}

func (t table[Row]) columnNames() (names []string) {
	for _, c := range t.columns {
		names = append(names, c.columnName())
	}
	return names
}

// only is the table with the columns that are named, or with its own if none is.
func (t table[Row]) only(names []string) table[Row] {
	if len(names) == 0 {
		return t
	}
	var chosen []column[Row]
	for _, name := range names {
		i := slices.IndexFunc(t.columns, func(c column[Row]) bool { return c.columnName() == name })
		c := t.columns[i]
		c.wide = false
		chosen = append(chosen, c)
	}
	t.columns = chosen
	return t
}
