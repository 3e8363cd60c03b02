package broker

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// EndKeySecretSize is how many bytes Config.EndKeySecret has.
const EndKeySecretSize = 32

// EndKey proves to a broker that has nobody to ask that a task was begun, by whom, and when its last
// token will have expired. It is good for one thing: ending that task, for that workload, also while
// the store is away or when it has lost the task. It prints itself redacted everywhere; the zero
// value is no key.
//
// Its text is "end_", the deadline in Unix milliseconds, a dot, and an HMAC-SHA-256 in base64url.
type EndKey struct {
	deadline int64 // Unix milliseconds
	mac      [sha256.Size]byte
}

const (
	endKeyPrefix   = "end_"
	endKeyBytes    = len(endKeyPrefix) + 19 + 1 + 43 // of the longest one
	redactedEndKey = "[end key redacted]"
)

// ParseEndKey reads exactly what Secret writes; "" is no key. Anything else is ErrInvalid.
func ParseEndKey(s string) (EndKey, error) {
	if s == "" {
		return EndKey{}, nil
	}
	rest, ok := strings.CutPrefix(s, endKeyPrefix)
	deadline, mac, dotted := strings.Cut(rest, ".")
	if !ok || !dotted || len(s) > endKeyBytes {
		return EndKey{}, badEndKey()
	}
	n, err := strconv.ParseInt(deadline, 10, 64)
	if err != nil || n <= 0 || strconv.FormatInt(n, 10) != deadline {
		return EndKey{}, badEndKey()
	}
	sum, err := base64.RawURLEncoding.Strict().DecodeString(mac)
	if err != nil || len(sum) != sha256.Size || base64.RawURLEncoding.EncodeToString(sum) != mac {
		return EndKey{}, badEndKey()
	}
	return EndKey{deadline: n, mac: [sha256.Size]byte(sum)}, nil
}

func badEndKey() error {
	return invalid("end_key", "is not one; send it as it came in the answer to the begin, or leave it out")
}

// Secret is the text of the key, and "" for none.
func (k EndKey) Secret() string {
	if k == (EndKey{}) {
		return ""
	}
	return endKeyPrefix + strconv.FormatInt(k.deadline, 10) + "." + base64.RawURLEncoding.EncodeToString(k.mac[:])
}

// String hides the secret, as do GoString, Format, LogValue and MarshalText.
func (k EndKey) String() string { return redactedEndKey }

// GoString hides the secret from %#v.
func (k EndKey) GoString() string { return redactedEndKey }

// Format hides the secret from every verb.
func (k EndKey) Format(f fmt.State, _ rune) { fmt.Fprint(f, redactedEndKey) }

// LogValue hides the secret from slog.
func (k EndKey) LogValue() slog.Value { return slog.StringValue(redactedEndKey) }

// MarshalText hides the secret from JSON, YAML and the like.
func (k EndKey) MarshalText() ([]byte, error) { return []byte(redactedEndKey), nil }

// endKeys makes and checks end keys. It prints nothing of its secret.
type endKeys struct{ secret []byte }

// newEndKeys takes a secret, or makes one that nobody else has.
func newEndKeys(secret []byte) (endKeys, error) {
	if secret == nil {
		secret = make([]byte, EndKeySecretSize)
		rand.Read(secret)
	}
	if len(secret) != EndKeySecretSize {
		return endKeys{}, fmt.Errorf("broker: Config.EndKeySecret has %d bytes; it must have %d", len(secret), EndKeySecretSize)
	}
	return endKeys{secret: append([]byte(nil), secret...)}, nil
}

// of is the key of a task: the same one at every replica that shares the secret.
func (e endKeys) of(task Task) EndKey {
	return e.make(task.ID, task.Workload, task.Deadline.UnixMilli())
}

func (e endKeys) make(task TaskID, workload spiffeid.ID, deadline int64) EndKey {
	mac := hmac.New(sha256.New, e.secret)
	// Neither an ID nor a SPIFFE ID has a line break, so that no two keys have the same text.
	text := append(make([]byte, 0, 256), "errand end key\n"...)
	text = append(append(text, task...), '\n')
	text = append(append(text, workload.String()...), '\n')
	mac.Write(strconv.AppendInt(text, deadline, 10))
	return EndKey{deadline: deadline, mac: [sha256.Size]byte(mac.Sum(nil))}
}

// proves returns the deadline of a task if the key is that task's and the workload's, and the zero
// time otherwise.
func (e endKeys) proves(k EndKey, task TaskID, workload spiffeid.ID) time.Time {
	if k == (EndKey{}) {
		return time.Time{}
	}
	good := e.make(task, workload, k.deadline)
	if !hmac.Equal(k.mac[:], good.mac[:]) {
		return time.Time{}
	}
	return time.UnixMilli(k.deadline).UTC()
}

// String hides the secret, as does Format.
func (e endKeys) String() string { return redactedEndKey }

// Format hides the secret from every verb.
func (e endKeys) Format(f fmt.State, _ rune) { fmt.Fprint(f, redactedEndKey) }
