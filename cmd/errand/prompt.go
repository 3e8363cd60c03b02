package main

import (
	"bufio"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/errandhq/errand/broker"
	"github.com/spf13/cobra"
)

// errNothingDone says that somebody has thought better of it.
var errNothingDone = errors.New("nothing was done")

// errNobody is a question that nobody answers.
var errNobody = errors.New("there is no terminal to ask on")

// prompt asks whoever sits at the terminal, and shows what is asked on stderr.
type prompt struct {
	cmd   *cobra.Command
	lines *bufio.Reader
}

func newPrompt(cmd *cobra.Command) (*prompt, error) {
	if !isTerminal(cmd.InOrStdin()) {
		return nil, errNobody
	}
	return &prompt{cmd, bufio.NewReader(cmd.InOrStdin())}, nil
}

// ask returns the line that is typed, without white space around it. Errors: errNobody, errInterrupted.
func (p *prompt) ask(question string) (string, error) {
	fmt.Fprint(p.cmd.ErrOrStderr(), question)
	type answer struct {
		line string
		err  error
	}
	typed := make(chan answer, 1)
	go func() { // after Ctrl-C it is left behind, and the program ends
		line, err := p.lines.ReadString('\n')
		typed <- answer{line, err}
	}()
	select {
	case a := <-typed:
		if a.err != nil {
			fmt.Fprintln(p.cmd.ErrOrStderr())
			return "", errNobody
		}
		return strings.TrimSpace(a.line), nil
	case <-p.cmd.Context().Done():
		fmt.Fprintln(p.cmd.ErrOrStderr())
		return "", errInterrupted
	}
}

// phrase wants something typed as it stands. Errors: errNothingDone, and those of ask.
func (p *prompt) phrase(want, toDo string) error {
	answer, err := p.ask(fmt.Sprintf("Type %q to %s: ", want, toDo))
	if err == nil && answer != want {
		err = errNothingDone
	}
	return err
}

// reason asks for one that no flag has given, until it is long enough. A flag's that is not is a mistake now, and not
// only after all has been typed.
func (p *prompt) reason(reason *string) (err error) {
	short := func() bool { return utf8.RuneCountInString(strings.TrimSpace(*reason)) < broker.MinReason }
	if *reason != "" && short() {
		return usage(p.cmd, "--reason is too short: say why in %d characters at least; it goes into the audit log", broker.MinReason)
	}
	for short() {
		if *reason, err = p.ask(fmt.Sprintf("Reason, %d characters at least: ", broker.MinReason)); err != nil {
			return orMissing(p.cmd, err, "--yes and --reason")
		}
	}
	return nil
}

// confirm asks on the terminal, and refuses where there is nobody to ask.
func confirm(cmd *cobra.Command, what string) error {
	p, err := newPrompt(cmd)
	if err == nil {
		fmt.Fprintln(cmd.ErrOrStderr(), what)
		err = p.phrase("yes", "do it")
	}
	return orMissing(cmd, err, "--yes")
}

// orMissing names the flags that stand for the answers that nobody has given.
func orMissing(cmd *cobra.Command, err error, flags string) error {
	if !errors.Is(err, errNobody) {
		return err
	}
	verb := " is"
	if strings.Contains(flags, " and ") {
		verb = " are"
	}
	return usage(cmd, "%s%s missing, and %w", flags, verb, err)
}

// needReason adds --reason, which has no default.
func needReason(cmd *cobra.Command, reason *string) {
	reasonFlag(cmd, reason)
	before := cmd.PreRunE
	cmd.PreRunE = func(cmd *cobra.Command, args []string) error {
		if strings.TrimSpace(*reason) == "" {
			return usage(cmd, "--reason is missing: say why; it goes into the audit log")
		}
		return before(cmd, args)
	}
}

func reasonFlag(cmd *cobra.Command, reason *string) {
	cmd.Flags().StringVar(reason, "reason", "", "why, for the audit log")
}
