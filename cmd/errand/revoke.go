package main

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/errandhq/errand/cmd/errand/internal/api"
	"github.com/errandhq/errand/sdk/wire"
	"github.com/spf13/cobra"
)

// revoking is one errand revoke.
type revoking struct {
	asking
	filter selecting
	body   wire.RevocationRequest
	most   int
	wait   time.Duration
	yes    bool

	command  *cobra.Command
	selector wire.Selector
}

// actFormats are the values of -o of a command that does something whose record can be listed.
var actFormats = append([]string{"text"}, formats...)

func newRevoke() *cobra.Command {
	r := &revoking{asking: asking{at: api.Operator}}
	cmd := &cobra.Command{
		Use:   "revoke FILTERS --reason WHY",
		Short: "Kill tokens, or end tasks, of whatever you choose: plan, ask, apply",
		Long: `revoke kills what the filters choose, at every verifier that listens, within milliseconds. It shows
first what that would be, and asks. With --yes it does it at once, and --dry-run only shows.

  errand revoke --workload 'spiffe://example.org/fin/*' --audience orders
  errand revoke --task tsk_00gybxqbdwiuxgoxp7eqvjcyoumu --reason "it loops for ever" --yes

Filters of several kinds must all hold; of several values of one, any. Those that name tasks, with
--task, --root, --name, --label or --ref, end these tasks and all below them. Else the tokens that are out
die, and their tasks may get new ones: --what says it otherwise, and a lock keeps new ones from being
issued: errand lock add, errand quarantine. Everything is --all, which needs the role admin.
` + operatorsHelp,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r.command = cmd
			return r.run()
		},
	}
	r.flags(cmd, actFormats)
	r.filter.flags(cmd, selectors)
	f := cmd.Flags()
	f.BoolVar(&r.filter.All, "all", false, "everything; in the place of filters")
	f.StringVar(&r.body.What, "what", "", "grants or tasks (default tasks if the filters name them, else grants)")
	_ = cmd.RegisterFlagCompletionFunc("what", cobra.FixedCompletions([]string{wire.WhatGrants, wire.WhatTasks}, cobra.ShellCompDirectiveNoFileComp)) // the flag is there
	f.BoolVar(&r.body.DryRun, "dry-run", false, "show what it would do, and do nothing")
	f.IntVar(&r.most, "max-affected", 0, "do nothing if more live grants than this would be hit, or more tasks would end")
	reasonFlag(cmd, &r.body.Reason)
	f.StringVar(&r.body.Ticket, "ticket", "", "a change or incident, for the audit log")
	waitFlag(cmd, &r.wait)
	f.BoolVar(&r.yes, "yes", false, "do not ask")
	return cmd
}

// run resolves the flags, and does it in the way that they say.
func (r *revoking) run() error {
	if err := r.resolve(); err != nil {
		return err
	}
	switch {
	case r.body.DryRun:
		return r.show()
	case r.curl:
		if err := r.missing(true); err != nil {
			return err
		}
		return r.print(r.command, r.request())
	case r.yes:
		if err := r.missing(true); err != nil {
			return err
		}
		return r.apply()
	}
	return r.discuss()
}

// resolve makes the request.
func (r *revoking) resolve() error {
	cmd := r.command
	s, err := r.filter.resolve(cmd)
	if err != nil {
		return err
	}
	r.selector = s
	named := len(members(s)) > 0
	switch {
	case !named && !s.All:
		return usage(cmd, "say what to revoke, with %s; or everything, with --all", selectHelp)
	case named && s.All:
		return usage(cmd, "--all is everything, and goes with no other filter")
	case r.body.What != "" && r.body.What != wire.WhatGrants && r.body.What != wire.WhatTasks:
		return usage(cmd, "--what is %q; it is %s or %s", r.body.What, wire.WhatGrants, wire.WhatTasks)
	case r.most < 0:
		return usage(cmd, "--max-affected is %d; it cannot be less than 0", r.most)
	}
	if cmd.Flag("max-affected").Changed {
		r.body.MaxAffected = &r.most
	}
	r.body.Selector = &s
	r.body.WaitSeconds, err = waitSeconds(cmd, r.wait)
	return err
}

func waitFlag(cmd *cobra.Command, wait *time.Duration) {
	cmd.Flags().DurationVar(wait, "wait", 0, fmt.Sprintf("wait for the verifiers' confirmations, so long at most; up to %ds", wire.MaxWait))
}

// waitSeconds is what --wait has.
func waitSeconds(cmd *cobra.Command, wait time.Duration) (int, error) {
	if wait < 0 || wait%time.Second != 0 || wait > wire.MaxWait*time.Second {
		return 0, usage(cmd, "--wait is %s; it must be whole seconds, %ds at most", wait, wire.MaxWait)
	}
	return int(wait / time.Second), nil
}

// missing names what nobody is asked for.
func (r *revoking) missing(yes bool) error {
	var flags []string
	if !yes {
		flags = append(flags, "--yes")
	}
	if strings.TrimSpace(r.body.Reason) == "" {
		flags = append(flags, "--reason")
	}
	switch {
	case len(flags) == 0:
		return nil
	case yes:
		return usage(r.command, "--reason is missing: say why; it goes into the audit log")
	}
	return orMissing(r.command, errNobody, strings.Join(flags, " and "))
}

func (r *revoking) request() api.Request {
	return api.Request{Method: http.MethodPost, Path: wire.PathRevocations, Body: r.body, Wait: r.wait}
}

// show is --dry-run.
func (r *revoking) show() error {
	var plan wire.RevocationPlan
	text, err := r.send(r.command, r.request(), &plan)
	if err != nil {
		return err
	}
	out := r.command.OutOrStdout()
	if r.output == "text" {
		writePlan(plain{out}, plan, time.Now())
		return nil
	}
	return planTable.show(out, r.output, text, plan)
}

// discuss plans, asks whoever sits there, and applies the plan.
func (r *revoking) discuss() error {
	p, err := newPrompt(r.command)
	if err != nil {
		return r.missing(false)
	}
	return r.discussWith(p)
}

func (r *revoking) discussWith(p *prompt) error {
	cmd := r.command
	planning := r.body
	planning.DryRun, planning.Reason, planning.Ticket, planning.WaitSeconds = true, "", "", 0
	var plan wire.RevocationPlan
	if _, err := r.send(cmd, api.Request{Method: http.MethodPost, Path: wire.PathRevocations, Body: planning}, &plan); err != nil {
		return err
	}
	if plan.Grants == 0 && plan.Tasks == 0 && plan.Complete {
		tellUnknown(cmd.ErrOrStderr(), plan.Unknown)
		fmt.Fprintf(cmd.ErrOrStderr(), "errand: nothing that is live matches %s, and nothing was done\n", asFlags(plan.Selector))
		return nil
	}
	writePlan(cmd.ErrOrStderr(), plan, time.Now())
	if err := r.agree(p, plan); err != nil {
		return err
	}
	r.body.Selector, r.body.What, r.body.Plan = nil, "", plan.Plan
	return r.apply()
}

// agree has the reason and the number that is at stake typed.
func (r *revoking) agree(p *prompt, plan wire.RevocationPlan) error {
	if err := p.reason(&r.body.Reason); err != nil {
		return err
	}
	return orMissing(r.command, p.phrase(fmt.Sprintf("revoke %d", atStake(plan)), "apply it"), "--yes")
}

// atStake is the number that a plan is about.
func atStake(plan wire.RevocationPlan) int {
	if plan.What == wire.WhatTasks {
		return plan.Tasks
	}
	return plan.Grants
}

// apply does it, and shows its record.
func (r *revoking) apply() error {
	var done wire.Revocation
	text, err := r.send(r.command, r.request(), &done)
	if err != nil {
		return err
	}
	out := r.command.OutOrStdout()
	if r.output == "text" {
		writeRevocation(plain{out}, done)
	} else {
		err = revocationTable(time.Now()).show(out, r.output, text, done)
	}
	err = errors.Join(err, tellUndone(r.command, done))
	fmt.Fprintln(r.command.ErrOrStderr(), hintAtLock(r.selector))
	return err
}

// hintAtLock says what a revocation does not do, and what does.
func hintAtLock(s wire.Selector) string {
	command, granted := "quarantine WORKLOAD", "tasks and tokens"
	switch {
	case !canLock(s):
	case len(s.Workload) == 1 && len(members(s)) == 1:
		command = "quarantine " + word(s.Workload[0])
	default:
		command, granted = "lock add "+asFlags(s), denies(len(s.Audience)+len(s.Scope) > 0)
	}
	return "New " + granted + " are still granted. To stop that too:  errand " + command + " --for 24h --reason ..."
}
