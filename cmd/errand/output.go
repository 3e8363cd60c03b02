package main

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/errandhq/errand/broker/audit"
	"github.com/spf13/cobra"
)

// EnvOutput names the variable with the value of -o for what is shown as a table unless it is told otherwise.
const EnvOutput = "ERRAND_OUTPUT"

// formats are the values of -o where a list or an object is shown.
var formats = []string{"table", "wide", "json", "ndjson", "yaml", "csv", "name"}

// rowFormats are those of rows that have no ID.
var rowFormats = formats[:len(formats)-1]

// outputFlag adds -o with the formats that a command has. The first is the default; but tables are for people, so
// what goes elsewhere than to a terminal is JSON where there is JSON.
func outputFlag(cmd *cobra.Command, output *string, has []string) {
	forPeople := has[0] == "table" && slices.Contains(has, "json")
	first, what := has[0], strings.Join(has, ", ")
	if forPeople {
		first, what = "", what+" (default "+EnvOutput+", or table on a terminal and json elsewhere)"
	}
	watches := slices.Equal(has, watchFormats)
	if watches {
		what += " (default table on a terminal and ndjson elsewhere)"
	}
	cmd.Flags().StringVarP(output, "output", "o", first, what)
	if watches {
		cmd.Flag("output").DefValue = "" // the help says it already
	}
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(has, cobra.ShellCompDirectiveNoFileComp)) // the flag is there
	before := cmd.PreRunE
	cmd.PreRunE = func(cmd *cobra.Command, args []string) error {
		if forPeople && !cmd.Flag("output").Changed {
			wanted := os.Getenv(EnvOutput)
			if wanted != "" && !slices.Contains(formats, wanted) {
				return usage(cmd, "%s is %q: set it to one of %s, or to nothing", EnvOutput, wanted, strings.Join(formats, ", "))
			}
			*output = defaultOutput(cmd, wanted, has)
		}
		if people := []string{"table", "text"}; slices.Contains(people, *output) && slices.Contains(people, has[0]) {
			*output = has[0] // who knows the one word should not have to know the other
		}
		if !slices.Contains(has, *output) {
			return usage(cmd, "the output %q is not known: use -o %s or -o %s", *output, strings.Join(has[:len(has)-1], ", -o "), has[len(has)-1])
		}
		if before != nil {
			return before(cmd, args)
		}
		return nil
	}
}

// defaultOutput is the value of -o for a command that has tables and JSON.
func defaultOutput(cmd *cobra.Command, wanted string, has []string) string {
	columns := cmd.Flag("columns")
	switch {
	case slices.Contains(has, wanted):
		return wanted
	case isTerminal(cmd.OutOrStdout()), columns != nil && columns.Changed:
		return "table"
	}
	return "json"
}

// table is how rows of something are shown.
type table[Row any] struct {
	columns []column[Row]
	name    func(Row) string // of -o name: the ID alone
}

// column is one property of a row.
type column[Row any] struct {
	head   string
	cell   func(Row) string
	people func(Row) string // for tables, where it differs: relative times
	wide   bool             // left out of -o table
}

// show writes an answer in a format. JSON is the API's; times are relative in tables, and RFC 3339
// elsewhere. In none is there a character that does something to a terminal: JSON and YAML have it escaped, and
// elsewhere it is a space.
func (t table[Row]) show(out io.Writer, format string, answer []byte, rows ...Row) error {
	switch format {
	case "json":
		_, err := out.Write(append(audit.Printable(bytes.TrimSpace(answer)), '\n'))
		return err
	case "yaml":
		text, err := asYAML(answer)
		if err == nil {
			_, err = out.Write(text)
		}
		return err
	case "ndjson":
		for _, row := range rows {
			var line bytes.Buffer
			encoder := json.NewEncoder(&line)
			encoder.SetEscapeHTML(false)
			if err := encoder.Encode(row); err != nil {
				return err
			}
			if _, err := out.Write(audit.Printable(line.Bytes())); err != nil {
				return err
			}
		}
		return nil
	case "csv":
		w := csv.NewWriter(out)
		for _, line := range t.cells(rows, true, false) {
			for i, text := range line {
				line[i] = csvCell(text)
			}
			_ = w.Write(line) // Error has the same
		}
		w.Flush()
		return w.Error()
	case "name":
		for _, row := range rows {
			if _, err := fmt.Fprintln(plain{out}, t.name(row)); err != nil {
				return err
			}
		}
		return nil
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, line := range t.cells(rows, format == "wide", true) {
		fmt.Fprintln(w, strings.Join(line, "\t"))
	}
	return w.Flush()
}

// cells has a line of heads, and one for each row.
func (t table[Row]) cells(rows []Row, wide, people bool) [][]string {
	lines := make([][]string, 1+len(rows))
	for _, c := range t.columns {
		if c.wide && !wide {
			continue
		}
		lines[0] = append(lines[0], c.head)
		for i, row := range rows {
			cell := c.cell
			if people && c.people != nil {
				cell = c.people
			}
			text := cell(row)
			if people {
				text = oneCell(text)
			}
			lines[1+i] = append(lines[1+i], text)
		}
	}
	return lines
}

// oneCell keeps a text that came from elsewhere within its cell, and off the terminal's controls.
func oneCell(text string) string {
	text = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, text)
	if text == "" {
		return "-"
	}
	return text
}

// csvCell is a text for a spreadsheet, which would run what begins like a formula: an apostrophe has it be text. A writer
// that comes after the CSV's own could not do what plain does, since that writes in blocks that may end within a character.
func csvCell(text string) string {
	text = string(printable([]byte(text)))
	if start := strings.TrimLeft(text, " \t\n"); start != "" && strings.ContainsRune("=+-@", rune(start[0])) {
		return "'" + text
	}
	return text
}

// plain writes lines of text for people. What else is in them that does not print itself came from
// elsewhere, and could move the cursor or turn around what follows: it is written as a space.
type plain struct{ io.Writer }

func (p plain) Write(text []byte) (int, error) {
	_, err := p.Writer.Write(printable(text))
	return len(text), err
}

func printable(text []byte) []byte {
	return bytes.Map(func(r rune) rune {
		if !unicode.IsPrint(r) && !isLayout(r) {
			return ' '
		}
		return r
	}, text)
}

func isLayout(r rune) bool { return r == '\n' || r == '\t' }

// rfc3339 is a time for programs; none is nothing.
func rfc3339(at *time.Time) string {
	if at == nil {
		return ""
	}
	return at.UTC().Format(time.RFC3339)
}

// ago is how long ago something was, for people.
func ago(at *time.Time, now time.Time) string {
	if at == nil {
		return "-"
	}
	return span(max(0, now.Sub(*at)))
}

// ahead is how long it is to something, for people.
func ahead(at *time.Time, now time.Time) string {
	if at == nil {
		return "-"
	}
	return "in " + span(max(0, at.Sub(now)))
}

// span is a duration in its largest unit, and in two where one would leave out much of it.
func span(d time.Duration) string {
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < time.Hour:
		return short(d.Truncate(time.Second))
	case d < 10*time.Hour:
		return short(d.Truncate(time.Minute))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", d/time.Hour)
	}
	return fmt.Sprintf("%dd", d/(24*time.Hour))
}
