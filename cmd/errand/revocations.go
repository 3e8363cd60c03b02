package main

import (
	"fmt"
	"io"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/errandhq/errand/cmd/errand/internal/api"
	"github.com/errandhq/errand/sdk/wire"
	"github.com/spf13/cobra"
)

func newRevocations() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "revocations",
		Short: "List the revocations of the last day, and look at one",
		Long: `revocations shows what operators have revoked in the last day with errand revoke: what it was, who did it
and why. The audit log has it for longer, and with it what ended each task.
` + operatorsHelp,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newRevocationsList(), newRevocationsShow())
	return cmd
}

func newRevocationsList() *cobra.Command {
	l := &listing[wire.Revocation]{asking: asking{at: api.Operator}, what: "revocations", view: revocationTable}
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the revocations of the last day",
		Args:  noArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return l.list(cmd, wire.PathRevocations, url.Values{}) },
	}
	l.flags(cmd, formats)
	columnsFlag(&l.asking, cmd, l.view)
	l.limitFlag(cmd)
	return cmd
}

func newRevocationsShow() *cobra.Command {
	a := &asking{at: api.Operator}
	cmd := &cobra.Command{
		Use:   "show REVOCATION",
		Short: "Show one revocation",
		Args:  oneID("revocation", "rev_"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return showOne(a, cmd, pathOf(wire.PathRevocation, args[0]), revocationTable)
		},
	}
	a.flags(cmd, formats)
	completeArgs(cmd, choices{wire.PathRevocations, func(i item) []string { return []string{i.ID} }})
	return cmd
}

// writePlan is a plan for people.
func writePlan(out io.Writer, p wire.RevocationPlan, now time.Time) {
	about := ""
	if !p.Complete {
		about = "at least "
	}
	switch p.What {
	case wire.WhatTasks:
		fmt.Fprintf(out, "Would end %s%s with %s\n", about, count(p.Tasks, "task"), count(p.Grants, "live grant"))
	default:
		fmt.Fprintf(out, "Would revoke %s%s in %s\n", about, count(p.Grants, "grant"), count(p.Tasks, "task"))
	}
	writeCounted(out, "workloads", p.Workloads)
	writeCounted(out, "owners", p.Owners)
	writeCounted(out, "audiences", p.Audiences)
	fmt.Fprintf(out, "  %-9s  %s\n", "feed", entries(p.Entries))
	for _, name := range p.Unknown {
		fmt.Fprintf(out, "  %-9s  %s is not in the inventory; check the spelling\n", "unknown", oneCell(name))
	}
	for i, g := range p.Sample {
		head := ""
		if i == 0 {
			head = "sample"
		}
		fmt.Fprintf(out, "  %-9s  %s  %s at %s, %s, expires %s\n", head, g.ID, oneCell(g.Workload), oneCell(g.Audience), oneCell(g.Scope), ahead(&g.ExpiresAt, now))
	}
}

// maxCounted is how many names a plan has of a kind at most.
const maxCounted = 20

// writeCounted says nothing where no live grant is: tasks that have none are counted in the first line alone.
func writeCounted(out io.Writer, what string, all []wire.Counted) {
	if len(all) == 0 {
		return
	}
	names := make([]string, len(all))
	for i, c := range all {
		names[i] = fmt.Sprintf("%s (%s)", oneCell(c.Name), thousands(c.Grants))
	}
	n := strconv.Itoa(len(all))
	if len(all) >= maxCounted {
		n += " or more"
	}
	fmt.Fprintf(out, "  %-9s  %s  %s\n", what, n, strings.Join(names, ", "))
}

func entries(n int) string {
	if n == 1 {
		return "1 entry"
	}
	return thousands(n) + " entries"
}

// count is a number of things, as 1 task or 1,204 grants.
func count(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return thousands(n) + " " + thing + "s"
}

// thousands is a number with a comma after each three digits.
func thousands(n int) string {
	text := strconv.Itoa(n)
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}

// writeRevocation is the record of a revocation for people.
func writeRevocation(out io.Writer, r wire.Revocation) {
	what := count(r.Tasks, "task") + " ended with all below"
	if r.What == wire.WhatGrants {
		what = "tokens revoked, not counted"
		if r.Grants != nil {
			what = count(*r.Grants, "grant") + " revoked"
		}
	}
	fmt.Fprintf(out, "%s  %s, in force after %.1f ms\n", r.ID, what, r.TookMS)
	fmt.Fprintf(out, "%s in the audit log, position %s of the feed\n", r.Event, r.Feed)
	for _, line := range propagation(r.Propagation) {
		fmt.Fprintln(out, line)
	}
}

// tellUndone says what a revocation has left to do; errFailed if that is anything but to write it down.
func tellUndone(cmd *cobra.Command, r wire.Revocation) (err error) {
	talk := cmd.ErrOrStderr()
	tellUnknown(talk, r.Unknown)
	if r.Left != "" {
		fmt.Fprintf(talk, "errand: %s is not complete; it has left %s\n", r.ID, r.Left)
		err = errFailed
	}
	if !r.Durable {
		fmt.Fprintln(talk, "errand: the broker cannot reach its store now: this is in force on the replica that has answered, and it writes it down when it can")
	}
	return err
}

// tellUnknown says which names are perhaps misspelt.
func tellUnknown(talk io.Writer, names []string) {
	for _, name := range names {
		fmt.Fprintf(talk, "errand: the inventory does not have %s; check the spelling\n", oneCell(name))
	}
}

// propagation says who has confirmed, and who has not and refuses by itself; nothing when it was not waited for.
func propagation(p *wire.Propagation) (lines []string) {
	if p == nil {
		return nil
	}
	pending := len(p.Pending) + p.Others
	lines = append(lines, fmt.Sprintf("%d of %s confirmed", p.Confirmed, count(p.Confirmed+pending, "verifier")))
	for _, v := range p.Pending {
		refuses := "accepts what it has not heard about"
		if !v.RefusesAt.IsZero() {
			refuses = "refuses by itself from " + v.RefusesAt.UTC().Format(time.RFC3339)
		}
		lines = append(lines, fmt.Sprintf("  pending  %s  %s for %s, %s", oneCell(v.ID), oneCell(v.Workload), oneCell(v.Audience), refuses))
	}
	if p.Others > 0 {
		lines = append(lines, fmt.Sprintf("  pending  %s more", thousands(p.Others)))
	}
	return lines
}

// planTable is how a plan is shown.
var planTable = table[wire.RevocationPlan]{
	name: func(p wire.RevocationPlan) string { return p.Plan },
	columns: []column[wire.RevocationPlan]{
		{head: "WHAT", cell: func(p wire.RevocationPlan) string { return p.What }},
		{head: "GRANTS", cell: func(p wire.RevocationPlan) string { return strconv.Itoa(p.Grants) }},
		{head: "TASKS", cell: func(p wire.RevocationPlan) string { return strconv.Itoa(p.Tasks) }},
		{head: "ENTRIES", cell: func(p wire.RevocationPlan) string { return strconv.Itoa(p.Entries) }},
		{head: "COMPLETE", cell: func(p wire.RevocationPlan) string { return strconv.FormatBool(p.Complete) }},
		{head: "WORKLOADS", wide: true, cell: func(p wire.RevocationPlan) string { return names(p.Workloads) }},
		{head: "OWNERS", wide: true, cell: func(p wire.RevocationPlan) string { return names(p.Owners) }},
		{head: "AUDIENCES", wide: true, cell: func(p wire.RevocationPlan) string { return names(p.Audiences) }},
	},
}

func names(all []wire.Counted) string {
	var out []string
	for c := range slices.Values(all) {
		out = append(out, c.Name)
	}
	return strings.Join(out, " ")
}

// revocationTable is how revocations are shown.
func revocationTable(now time.Time) table[wire.Revocation] {
	grants := func(r wire.Revocation) string {
		if r.Grants == nil {
			return ""
		}
		return strconv.Itoa(*r.Grants)
	}
	return table[wire.Revocation]{
		name: func(r wire.Revocation) string { return r.ID },
		columns: []column[wire.Revocation]{
			{head: "REVOCATION", cell: func(r wire.Revocation) string { return r.ID }},
			{head: "AT", cell: func(r wire.Revocation) string { return rfc3339(&r.At) }, people: func(r wire.Revocation) string { return ago(&r.At, now) }},
			{head: "ACTOR", cell: func(r wire.Revocation) string { return r.Actor }},
			{head: "WHAT", cell: func(r wire.Revocation) string { return r.What }},
			{head: "GRANTS", cell: grants},
			{head: "TASKS", cell: func(r wire.Revocation) string { return strconv.Itoa(r.Tasks) }},
			{head: "REASON", cell: func(r wire.Revocation) string { return r.Reason }},
			{head: "SELECTOR", wide: true, cell: func(r wire.Revocation) string { return asFlags(r.Selector) }},
			{head: "TICKET", wide: true, cell: func(r wire.Revocation) string { return r.Ticket }},
			{head: "ENTRIES", wide: true, cell: func(r wire.Revocation) string { return strconv.Itoa(r.Entries) }},
			{head: "DURABLE", wide: true, cell: func(r wire.Revocation) string { return strconv.FormatBool(r.Durable) }},
			{head: "FEED", wide: true, cell: func(r wire.Revocation) string { return r.Feed }},
			{head: "EVENT", wide: true, cell: func(r wire.Revocation) string { return r.Event }},
		},
	}
}
