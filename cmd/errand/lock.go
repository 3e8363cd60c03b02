package main

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/errandhq/errand/cmd/errand/internal/api"
	"github.com/errandhq/errand/sdk/wire"
	"github.com/spf13/cobra"
)

func newLock() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "lock",
		Short: "Deny new tasks and tokens to whatever you choose, for a time",
		Long: `lock keeps new tasks and tokens from being granted to workloads, or for audiences and scopes, until it
expires or is removed. It kills nothing that is out unless you add --revoke, and ends no task unless you add
--end-tasks: what runs goes on.

  errand lock add --audience orders --scope orders:write --for 1h --reason "INC-4411: bad deploy"
  errand quarantine spiffe://example.org/report --for 24h --reason "INC-4411: stolen key"
  errand lock list
` + operatorsHelp,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newLockAdd(), newLockList(), newLockShow(), newLockRemove())
	return cmd
}

// locking is one errand lock add, or errand quarantine.
type locking struct {
	asking
	filter selecting
	body   wire.LockRequest
	life   time.Duration
	yes    bool

	command *cobra.Command
}

func newLockAdd() *cobra.Command {
	l := &locking{asking: asking{at: api.Operator}}
	cmd := &cobra.Command{
		Use:   "add FILTERS --for 24h --reason WHY",
		Short: "Deny new tasks and tokens to what filters choose",
		Long: `add denies new tasks and tokens. A workload, an owner or a risk class may begin nothing; with an audience
or a scope as well, it gets no token for that, and its tasks begin all the same; an audience or a scope alone
gives no token to anybody. There is one lock for each combination of values. With --revoke, what is out dies
once the locks are in force, so that nothing slips in between. Tasks that run go on all the same, without
these tokens: --end-tasks ends them as well, and all below them.
` + operatorsHelp,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return l.run(cmd) },
	}
	l.filter.flags(cmd, lockable)
	cmd.Flags().BoolVar(&l.filter.All, "all", false, "everything, in the place of filters: nothing is granted to anybody")
	cmd.Flags().BoolVar(&l.body.Revoke, "revoke", false, "kill the tokens that are out, too; running tasks go on without them")
	l.rest(cmd)
	return cmd
}

func newQuarantine() *cobra.Command {
	l := &locking{asking: asking{at: api.Operator}, body: wire.LockRequest{Revoke: true}}
	cmd := &cobra.Command{
		Use:   "quarantine WORKLOAD --for 24h --reason WHY",
		Short: "Deny a workload new tasks and tokens, and kill those that it has",
		Long: `quarantine is  errand lock add --workload WORKLOAD --revoke.  WORKLOAD is a SPIFFE ID, or one that
ends in /* and means all below it. Remove the lock with errand lock remove.

Its tasks that run go on, without tokens: what errand exec has started keeps running, and every API refuses
it. With --end-tasks they end as well, all below them too, and errand exec stops what it has started; the same
later is  errand revoke --workload WORKLOAD --what tasks.

  errand quarantine spiffe://example.org/report --for 24h --reason "INC-4411: stolen key"
  errand quarantine spiffe://example.org/report --end-tasks --for 24h --reason "INC-4411: stolen key"
` + operatorsHelp,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 || args[0] == "" {
				return usage(cmd, "name one workload by its SPIFFE ID, as spiffe://example.org/report")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			l.filter.Workload = args
			return l.run(cmd)
		},
	}
	l.rest(cmd)
	completeArgs(cmd, workloadIDs)
	return cmd
}

// rest adds the flags that both have.
func (l *locking) rest(cmd *cobra.Command) {
	l.flags(cmd, actFormats)
	f := cmd.Flags()
	f.BoolVar(&l.body.EndTasks, "end-tasks", false, "kill the tokens that are out, and end the running tasks with all below them")
	f.DurationVar(&l.life, "for", 0, "how long, as 24h; at most 720h")
	reasonFlag(cmd, &l.body.Reason)
	f.StringVar(&l.body.Ticket, "ticket", "", "a change or incident, for the audit log")
	f.BoolVar(&l.yes, "yes", false, "do not ask")
}

func (l *locking) run(cmd *cobra.Command) error {
	l.command = cmd
	s, err := l.filter.resolve(cmd)
	if err != nil {
		return err
	}
	named := len(members(s)) > 0
	switch {
	case !named && !s.All:
		return usage(cmd, "say what to lock, with %s; or everything, with --all", lockingHelp)
	case named && s.All:
		return usage(cmd, "--all is everything, and goes with no other filter")
	case l.life == 0:
		return usage(cmd, "--for is missing: say for how long, as --for 24h; at most 720h")
	case l.life < 0 || l.life%time.Second != 0:
		return usage(cmd, "--for is %s; it must be whole seconds", l.life)
	}
	l.body.Selector, l.body.ExpiresIn = s, int64(l.life/time.Second)
	if !l.curl && !l.yes {
		if err := l.discuss(); err != nil {
			return err
		}
	}
	if strings.TrimSpace(l.body.Reason) == "" {
		return usage(cmd, "--reason is missing: say why; it goes into the audit log, and to everybody who meets the lock")
	}
	var done wire.LockResponse
	text, err := l.send(cmd, api.Request{Method: http.MethodPost, Path: wire.PathLocks, Body: l.body}, &done)
	if err != nil {
		return err
	}
	return l.show(text, done)
}

// discuss shows what it comes to, and asks.
func (l *locking) discuss() error {
	cmd := l.command
	p, err := newPrompt(cmd)
	if err != nil {
		flags := "--yes"
		if strings.TrimSpace(l.body.Reason) == "" {
			flags += " and --reason"
		}
		return orMissing(cmd, err, flags)
	}
	talk := cmd.ErrOrStderr()
	s := l.body.Selector
	fmt.Fprintf(talk, "Would deny new %s for %s to %s\n", denies(len(s.Audience)+len(s.Scope) > 0), short(l.life), asFlags(s))
	if l.body.Revoke || l.body.EndTasks {
		var plan wire.RevocationPlan
		request := wire.RevocationRequest{Selector: &l.body.Selector, What: wire.WhatGrants, DryRun: true}
		if l.body.EndTasks {
			request.What = wire.WhatTasks
		}
		if _, err := l.send(cmd, api.Request{Method: http.MethodPost, Path: wire.PathRevocations, Body: request}, &plan); err != nil {
			return err
		}
		writePlan(talk, plan, time.Now())
	}
	if err := p.reason(&l.body.Reason); err != nil {
		return err
	}
	return orMissing(cmd, p.phrase("lock", "do it"), "--yes")
}

// short is a duration without what is zero at its end.
func short(d time.Duration) string {
	text := d.String()
	if rest, ok := strings.CutSuffix(text, "m0s"); ok {
		text = rest + "m"
	}
	if rest, ok := strings.CutSuffix(text, "h0m"); ok {
		text = rest + "h"
	}
	return text
}

func (l *locking) show(text []byte, done wire.LockResponse) (err error) {
	out := l.command.OutOrStdout()
	if l.output != "text" {
		err = lockTable(time.Now()).show(out, l.output, text, done.Locks...)
	} else {
		l.write(plain{out}, done)
	}
	if done.Revocation == nil { // which has them, too
		tellUnknown(l.command.ErrOrStderr(), done.Unknown)
	}
	if done.Left != "" {
		fmt.Fprintf(l.command.ErrOrStderr(), "errand: the locks are in force, and this is left: %s\n", oneCell(done.Left))
		err = errors.Join(err, errFailed)
	}
	if done.Revocation != nil {
		err = errors.Join(err, tellUndone(l.command, *done.Revocation))
	}
	if l.body.Revoke && !l.body.EndTasks {
		fmt.Fprintln(l.command.ErrOrStderr(), "Running tasks go on, without these tokens. To end them too:  errand revoke "+asFlags(l.body.Selector)+" --what tasks --reason ...")
	}
	return err
}

func (l *locking) write(out io.Writer, done wire.LockResponse) {
	for _, lock := range done.Locks {
		if lock.Stood {
			fmt.Fprintf(out, "%s  stood already on %s, until %s: %s\n", lock.ID, oneCell(covers(lock)), rfc3339(&lock.ExpiresAt), oneCell(lock.Reason))
			continue
		}
		fmt.Fprintf(out, "%s  new %s denied to %s until %s\n", lock.ID, denies(lock.Audience != "" || lock.Scope != ""), oneCell(covers(lock)), rfc3339(&lock.ExpiresAt))
	}
	if done.Revocation != nil {
		writeRevocation(out, *done.Revocation)
	}
}

// denies is what a lock keeps from being granted. One that is narrowed to an audience or a scope lets tasks begin.
func denies(narrowed bool) string {
	if narrowed {
		return "tokens"
	}
	return "tasks and tokens"
}

// covers is what a lock is on.
func covers(l wire.OperatorLock) string {
	var out []string
	for _, part := range [][2]string{{"", l.Subject}, {"audience ", l.Audience}, {"scope ", l.Scope}} {
		if part[1] != "" {
			out = append(out, part[0]+part[1])
		}
	}
	if len(out) == 0 {
		return "everybody"
	}
	return strings.Join(out, ", ")
}

func newLockList() *cobra.Command {
	a := &asking{at: api.Operator}
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the locks that stand",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var list wire.LockList
			text, err := a.send(cmd, api.Request{Method: http.MethodGet, Path: wire.PathLocks}, &list)
			if err != nil {
				return err
			}
			return lockTable(time.Now()).only(a.columns).show(cmd.OutOrStdout(), a.output, text, list.Locks...)
		},
	}
	a.flags(cmd, formats)
	columnsFlag(a, cmd, lockTable)
	return cmd
}

func newLockShow() *cobra.Command {
	a := &asking{at: api.Operator}
	cmd := &cobra.Command{
		Use:   "show LOCK",
		Short: "Show one lock",
		Args:  oneID("lock", "lck_"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return showOne(a, cmd, pathOf(wire.PathLock, args[0]), lockTable)
		},
	}
	a.flags(cmd, formats)
	completeArgs(cmd, lockIDs)
	return cmd
}

func newLockRemove() *cobra.Command {
	var reason string
	var yes bool
	a := &asking{at: api.Operator}
	cmd := &cobra.Command{
		Use:   "remove LOCK --reason WHY",
		Short: "Remove a lock before it expires",
		Long: `remove lets what a lock was on begin tasks and get tokens again, unless another lock is on it too. Nothing
that was revoked comes back. With -o it shows the lock as it stood.`,
		Args: oneID("lock", "lck_"),
		RunE: func(cmd *cobra.Command, args []string) error {
			var lock wire.OperatorLock
			var text []byte
			var err error
			path := pathOf(wire.PathLock, args[0])
			if !a.curl && (!yes || a.output != "text") {
				if text, err = a.beforeRemoval(cmd, path, !yes, &lock); err != nil {
					return err
				}
			}
			request := api.Request{Method: http.MethodDelete, Path: path + "?" + url.Values{"reason": {reason}}.Encode()}
			if _, err = a.send(cmd, request, nil); err != nil { // the answer has no body
				return err
			}
			if a.output == "text" {
				_, err = fmt.Fprintln(plain{cmd.OutOrStdout()}, args[0]+" is removed")
				return err
			}
			return lockTable(time.Now()).show(cmd.OutOrStdout(), a.output, text, lock)
		},
	}
	a.flags(cmd, actFormats)
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	needReason(cmd, &reason)
	completeArgs(cmd, lockIDs)
	return cmd
}

// beforeRemoval finds the lock as it stood, and, if it is to ask, shows it and asks.
func (a *asking) beforeRemoval(cmd *cobra.Command, path string, ask bool, lock *wire.OperatorLock) ([]byte, error) {
	if ask {
		if _, err := newPrompt(cmd); err != nil {
			return nil, orMissing(cmd, err, "--yes")
		}
	}
	text, err := a.send(cmd, api.Request{Method: http.MethodGet, Path: path}, lock)
	if err != nil || !ask {
		return text, err
	}
	return text, confirm(cmd, fmt.Sprintf("%s is on %s until %s, by %s: %s\nWithout it, new %s are granted again.",
		lock.ID, oneCell(covers(*lock)), rfc3339(&lock.ExpiresAt), oneCell(lock.Actor), oneCell(lock.Reason), denies(lock.Audience != "" || lock.Scope != "")))
}

// lockTable is how locks are shown.
func lockTable(now time.Time) table[wire.OperatorLock] {
	return table[wire.OperatorLock]{
		name: func(l wire.OperatorLock) string { return l.ID },
		columns: []column[wire.OperatorLock]{
			{head: "LOCK", cell: func(l wire.OperatorLock) string { return l.ID }},
			{head: "SUBJECT", cell: func(l wire.OperatorLock) string { return l.Subject }},
			{head: "AUDIENCE", cell: func(l wire.OperatorLock) string { return l.Audience }},
			{head: "SCOPE", cell: func(l wire.OperatorLock) string { return l.Scope }},
			{head: "SINCE", cell: func(l wire.OperatorLock) string { return rfc3339(&l.Since) }, people: func(l wire.OperatorLock) string { return ago(&l.Since, now) }},
			{head: "EXPIRES", cell: func(l wire.OperatorLock) string { return rfc3339(&l.ExpiresAt) }, people: func(l wire.OperatorLock) string { return ahead(&l.ExpiresAt, now) }},
			{head: "REASON", cell: func(l wire.OperatorLock) string { return l.Reason }},
			{head: "ACTOR", wide: true, cell: func(l wire.OperatorLock) string { return l.Actor }},
		},
	}
}
