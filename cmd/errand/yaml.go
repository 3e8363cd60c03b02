package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// asYAML writes one JSON value as YAML: the same value, with its members in the order that they have. What is not plainly a
// text stands in quotes, so that readers of YAML 1.1 and of 1.2 both take it for what it is.
func asYAML(answer []byte) ([]byte, error) {
	in := json.NewDecoder(bytes.NewReader(answer))
	in.UseNumber()
	y := yamlWriter{in: in}
	if err := y.value(0, ""); err != nil {
		return nil, err
	}
	if _, err := in.Token(); err != io.EOF {
		return nil, errors.New("there is more than one value in the JSON")
	}
	return y.out.Bytes(), nil
}

type yamlWriter struct {
	in  *json.Decoder
	out bytes.Buffer
}

// value writes the next one after what its line has: a key's colon, an item's dash, or nothing. indent is that of the line.
func (y *yamlWriter) value(after byte, indent string) error {
	token, err := y.in.Token()
	if err != nil {
		return err
	}
	opening, nested := token.(json.Delim)
	nested = nested && y.in.More()
	switch {
	case nested && after == ':':
		y.out.WriteByte('\n')
	case after != 0:
		y.out.WriteByte(' ')
	}
	switch {
	case nested:
		if after == '-' || after == ':' && opening == '{' {
			indent += "  "
		}
		err = y.block(opening, after == ':', indent)
	case opening == '{':
		y.out.WriteString("{}\n")
	case opening == '[':
		y.out.WriteString("[]\n")
	default:
		y.out.WriteString(scalar(token) + "\n")
	}
	if err == nil && opening != 0 {
		_, err = y.in.Token() // that closes it
	}
	return err
}

// block writes the members of an object, or the items of a list. The first is on a line of its own or on the one that is there.
func (y *yamlWriter) block(opening json.Delim, ownLine bool, indent string) error {
	for ; y.in.More(); ownLine = true {
		if ownLine {
			y.out.WriteString(indent)
		}
		mark := byte('-')
		if opening == '{' {
			token, err := y.in.Token()
			if err != nil {
				return err
			}
			y.out.WriteString(key(scalar(token), indent))
			mark = ':'
		}
		y.out.WriteByte(mark)
		if err := y.value(mark, indent); err != nil {
			return err
		}
	}
	return nil
}

// maxPlainKey is the longest key that YAML lets stand before its colon without a question mark, in bytes: it counts
// 1024 characters.
const maxPlainKey = 1000

func key(text, indent string) string {
	if len(text) > maxPlainKey {
		return "? " + text + "\n" + indent
	}
	return text
}

func scalar(token json.Token) string {
	switch v := token.(type) {
	case nil:
		return "null"
	case bool:
		return strconv.FormatBool(v)
	case json.Number:
		return number(v.String())
	}
	text, _ := token.(string)
	if plainText.MatchString(text) && !slices.Contains(notPlain, strings.ToLower(text)) {
		return text
	}
	return strconv.Quote(text) // each of Go's escapes is one of YAML's
}

// number has the point and the sign without which YAML 1.1 takes 1e3 for a text, and some readers an integer beyond 64 bits.
func number(text string) string {
	mantissa, exponent, is := strings.Cut(strings.ToLower(text), "e")
	if _, err := strconv.ParseInt(text, 10, 64); err != nil && !strings.Contains(mantissa, ".") {
		mantissa += ".0"
	}
	if !is {
		return mantissa
	}
	if !strings.ContainsAny(exponent[:1], "+-") {
		exponent = "+" + exponent
	}
	return mantissa + "e" + exponent
}

// plainText begins like a word, and no mark of YAML's can be in it.
var plainText = regexp.MustCompile(`^[A-Za-z/]([\w./@+-]|:[\w./@+-]| [\w/])*$`)

// notPlain are words that some version of YAML, or some library, takes for something else.
var notPlain = []string{"y", "n", "yes", "no", "on", "off", "true", "false", "null", "nan", "inf", "infinity"}
