package httpapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"reflect"
	"strconv"
	"strings"

	"github.com/errandhq/errand/sdk/wire"
	strict "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// Bounds of a request body. One more is refused.
const (
	MaxBody     = 64 << 10 // bytes; a report of usage may have wire.MaxUsageBytes
	MaxKeyedEnd = 12 << 10 // bytes; of the end of a task by its end key alone
	MaxNesting  = 16       // objects and arrays inside each other
	MaxMembers  = 256      // members of one object
)

// decode reads a JSON body of at most limit bytes into v: one object and nothing after it, valid UTF-8, no member that v
// does not have, none twice, none in another letter case, and within the bounds.
func decode(w http.ResponseWriter, r *http.Request, limit int64, v any) error {
	if media, err := mediaType(r.Header); err != nil || media != wire.TypeJSON {
		return errMediaType
	}
	text, err := readText(w, r, limit)
	if err != nil {
		return err
	}
	if !isSmallObject(text) {
		if err := wantShape(text); err != nil {
			return err
		}
	}
	if err := strict.Unmarshal(text, v, strict.RejectUnknownMembers(true)); err != nil {
		if shape := wantShape(text); shape != nil {
			return shape
		}
		return &malformed{explain(err)}
	}
	return nil
}

// isSmallObject reports whether a text has so little in it that no value can be outside the bounds, as most
// have; whatever it is, it is no list, and no null.
func isSmallObject(text []byte) bool {
	count := func(of string) int { return bytes.Count(text, []byte(of)) }
	return bytes.HasPrefix(text, []byte("{")) && count("{")+count("[") <= MaxNesting && count(":") <= MaxMembers
}

// mediaType is that of the one Content-Type, of a body in UTF-8 without content coding.
func mediaType(h http.Header) (string, error) {
	media, params, err := mime.ParseMediaType(h.Get("Content-Type"))
	if err != nil || len(h.Values("Content-Type")) != 1 {
		return "", errMediaType
	}
	if charset, ok := params["charset"]; ok && !strings.EqualFold(charset, "utf-8") {
		return "", errMediaType
	}
	for _, encoding := range h.Values("Content-Encoding") {
		if encoding != "identity" {
			return "", errMediaType
		}
	}
	return media, nil
}

// readText reads a body of at most limit bytes.
func readText(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, error) {
	text, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	var large *http.MaxBytesError
	if errors.As(err, &large) {
		return nil, errTooLarge
	}
	if err != nil {
		return nil, &malformed{fmt.Sprintf("the body could not be read: %v", err)}
	}
	return text, nil
}

// wantShape checks the bounds by reading tokens, before anything is built from them.
func wantShape(text []byte) error { return wantShapeOf('{', text) }

// wantShapeOf wants an object, '{', or a list, '['.
func wantShapeOf(kind jsontext.Kind, text []byte) error {
	d := jsontext.NewDecoder(bytes.NewReader(text))
	if d.PeekKind() != kind {
		if len(bytes.TrimSpace(text)) == 0 {
			return &malformed{"the body is empty; a JSON " + kindName(kind) + " is expected"}
		}
		return &malformed{"the body is not a JSON " + kindName(kind)}
	}
	for {
		_, err := d.ReadToken()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return &malformed{explain(err)}
		}
		depth := d.StackDepth()
		if depth > MaxNesting {
			return &malformed{fmt.Sprintf("the body is nested more than %d deep", MaxNesting)}
		}
		// The index counts names and values.
		if kind, n := d.StackIndex(depth); kind == '{' && n > 2*MaxMembers {
			return &malformed{fmt.Sprintf("an object has more than %d members", MaxMembers)}
		}
		if depth == 0 && len(bytes.TrimSpace(text[d.InputOffset():])) > 0 {
			return &malformed{"there is something after the JSON " + kindName(kind)}
		}
	}
}

// explain says what is wrong and where, without repeating what was sent.
func explain(err error) string {
	var semantic *strict.SemanticError
	var syntactic *jsontext.SyntacticError
	errors.As(err, &semantic)
	errors.As(err, &syntactic)
	switch {
	case errors.Is(err, strict.ErrUnknownName) && semantic != nil:
		return place(semantic.JSONPointer) + " is not known; check its spelling, and that it is in lower case"
	case errors.Is(err, jsontext.ErrDuplicateName) && syntactic != nil:
		return place(syntactic.JSONPointer) + " is there twice"
	case semantic != nil && semantic.GoType != nil:
		return fmt.Sprintf("%s must be %s, and is a JSON %s", place(semantic.JSONPointer), wanted(semantic.GoType), kindName(semantic.JSONKind))
	case syntactic != nil:
		return fmt.Sprintf("not valid JSON at byte %d", syntactic.ByteOffset)
	case errors.Is(err, io.ErrUnexpectedEOF):
		return "the JSON ends too early"
	}
	return "not valid JSON"
}

// maxPlace bounds what is repeated of a member's name.
const maxPlace = 64

// place writes a JSON Pointer as field names are written everywhere: tokens[0].audience. A name that
// is more than a plain word is quoted, and cut.
func place(p jsontext.Pointer) string {
	out := ""
	for token := range p.Tokens() {
		_, err := strconv.Atoi(token)
		switch {
		case err == nil:
			out += "[" + token + "]"
		case len(token) > maxPlace:
			out += fmt.Sprintf(".%q…", strings.ToValidUTF8(token[:maxPlace], ""))
		case strings.ContainsFunc(token, notWord):
			out += fmt.Sprintf(".%q", token)
		default:
			out += "." + token
		}
	}
	if out == "" {
		return "the body"
	}
	return strings.TrimPrefix(out, ".")
}

func notWord(r rune) bool {
	return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '_')
}

func wanted(t reflect.Type) string {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch t.Kind() {
	case reflect.String:
		return "a string"
	case reflect.Int, reflect.Int64, reflect.Uint64:
		return "a whole number"
	case reflect.Slice:
		return "a list"
	}
	return "an object"
}

func kindName(k jsontext.Kind) string {
	switch k {
	case 't', 'f':
		return "boolean"
	case '{':
		return "object"
	case '[':
		return "list"
	}
	return k.String()
}

func writeJSON(w io.Writer, v any) {
	encoder := json.NewEncoder(w)
	// The reader may have gone; there is nobody left to tell.
	_ = encoder.Encode(v)
}

// idempotencyKey takes the header's value with or without the quotes of a structured field.
func idempotencyKey(h http.Header) (string, error) {
	values := h.Values(wire.HeaderIdempotencyKey)
	switch len(values) {
	case 0:
		return "", nil
	case 1:
	default:
		return "", &malformed{wire.HeaderIdempotencyKey + " is there more than once"}
	}
	key := values[0]
	if quoted, ok := strings.CutPrefix(key, `"`); ok {
		key, ok = strings.CutSuffix(quoted, `"`)
		if !ok {
			return "", &malformed{wire.HeaderIdempotencyKey + " has an opening quote and no closing one"}
		}
	}
	if key == "" {
		return "", &malformed{wire.HeaderIdempotencyKey + " is empty; send a random value, or leave the header out"}
	}
	return key, nil
}
