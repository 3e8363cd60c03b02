package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/errandhq/errand/broker/audit"
	"github.com/errandhq/errand/cmd/errand/internal/api"
	"github.com/errandhq/errand/sdk"
	"github.com/spf13/cobra"
)

// asking is what the commands that ask the broker have in common: -o, --columns, --curl, where the listener is, and
// the one way to send a request.
type asking struct {
	at     api.Listener
	output string
	curl   bool
	url    string

	columns []string // to show, of a list; none for those that it has
}

// errNotAsked says that the request was printed instead.
var errNotAsked = errors.New("the request was printed")

// flags adds the flags, with the values of -o that the command knows.
func (a *asking) flags(cmd *cobra.Command, formats []string) {
	outputFlag(cmd, &a.output, formats)
	cmd.Flags().BoolVar(&a.curl, "curl", false, "print the request as a curl command line, and do not send it")
	if a.at == api.Operator {
		operatorURLFlag(cmd, &a.url)
	} else {
		brokerURLFlag(cmd, &a.url)
	}
}

func operatorURLFlag(cmd *cobra.Command, url *string) {
	cmd.Flags().StringVar(url, "operator-url", "", "the operator listener (default "+api.EnvOperatorURL+")")
}

func brokerURLFlag(cmd *cobra.Command, url *string) {
	cmd.Flags().StringVar(url, "broker-url", "", "the workload listener (default "+sdk.EnvBrokerURL+")")
}

// environment is that of the process, with the flags over it.
func (a *asking) environment() api.Environment {
	variable := sdk.EnvBrokerURL
	if a.at == api.Operator {
		variable = api.EnvOperatorURL
	}
	return api.Environment{Getenv: os.Getenv, Flags: map[string]string{variable: a.url}}
}

// send asks the broker, and returns its answer as it came. With --curl it prints the request, and
// returns errNotAsked. A refusal is shown on stdout, too, if JSON is what stdout is to have.
func (a *asking) send(cmd *cobra.Command, request api.Request, into any) ([]byte, error) {
	if a.curl {
		return nil, a.print(cmd, request)
	}
	var text []byte
	err := a.open(cmd, func(c *api.Client) (err error) {
		text, err = a.sendOn(cmd, c, request, into)
		return err
	})
	return text, err
}

// open has a client for what a function does.
func (a *asking) open(cmd *cobra.Command, use func(*api.Client) error) error {
	c, err := api.Open(cmd.Context(), a.environment(), a.at)
	if err != nil {
		return inUsage(cmd, err)
	}
	return errors.Join(use(c), c.Close())
}

func (a *asking) sendOn(cmd *cobra.Command, c *api.Client, request api.Request, into any) ([]byte, error) {
	text, err := c.Send(cmd.Context(), request, into)
	var refused *api.Refusal
	if errors.As(err, &refused) && a.output == "json" {
		_, _ = cmd.OutOrStdout().Write(audit.Printable(refused.JSON))
	}
	return text, err
}

func (a *asking) print(cmd *cobra.Command, request api.Request) error {
	e := a.environment()
	line, err := e.Curl(request, a.at)
	if err != nil {
		return inUsage(cmd, err)
	}
	fmt.Fprintln(cmd.OutOrStdout(), line)
	if e.IdentityDir() == "" && (a.at != api.Operator || !e.HasCertificate()) {
		fmt.Fprintln(cmd.ErrOrStderr(), "errand: curl needs the identity as files; in errand dev,  errand dev svid ID --out .  writes them")
	}
	return errNotAsked
}

// inUsage makes a mistake of the environment one of the command line.
func inUsage(cmd *cobra.Command, err error) error {
	if errors.Is(err, api.ErrConfig) {
		return usage(cmd, "%w", err)
	}
	return err
}
