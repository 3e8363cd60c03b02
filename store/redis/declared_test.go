package redis_test

import (
	"bufio"
	"io"
	"net"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// declared wants the scripts on a server, until the test ends, to use no key that they do not declare, and the test to
// run so many scripts at least. A key in the same slot is refused by nobody while slots stay where they are.
func declared(t *testing.T, s *server, scripts int) {
	t.Helper()
	conn, err := net.Dial("tcp", s.Addr())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, "MONITOR\r\n"); err != nil {
		t.Fatal(err)
	}
	var m monitor
	var reading sync.WaitGroup
	reading.Go(func() { m.read(conn) })
	t.Cleanup(func() {
		s.Must("ECHO", "last")
		_ = conn.SetReadDeadline(time.Now().Add(time.Minute))
		reading.Wait()
		_ = conn.Close()
		for use := range m.undeclared {
			t.Errorf("a script uses a key that it does not declare: %s", use)
		}
		if len(m.scripts) < scripts || !m.whole {
			t.Errorf("saw %d scripts, and the end: %t; want %d at least", len(m.scripts), m.whole, scripts)
		}
	})
}

// monitor is what the server says that it does, up to an ECHO of "last".
type monitor struct {
	scripts    map[string][]string // the keys that each declared when it ran last
	undeclared map[string]bool
	whole      bool
}

var anyGrant = regexp.MustCompile(`[a-z0-9]{26}$`)

// wordsOf are the words of a line, each in quotes, at most so many: lines may be long.
func wordsOf(line string, most int) (words []string) {
	for len(words) < most {
		begin := strings.IndexByte(line, '"')
		if begin < 0 {
			break
		}
		line = line[begin:]
		end := 1
		for end < len(line)-1 && line[end] != '"' {
			if line[end] == '\\' {
				end++
			}
			end++
		}
		word, err := strconv.Unquote(line[:end+1])
		if err != nil {
			word = line[:end+1]
		}
		words, line = append(words, word), line[end+1:]
	}
	return words
}

func (m *monitor) read(from io.Reader) {
	m.scripts, m.undeclared = map[string][]string{}, map[string]bool{}
	running := "" // the script whose commands these are
	lines := bufio.NewReader(from)
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			return
		}
		words := wordsOf(line, 3)
		switch {
		case len(words) > 1 && strings.EqualFold(words[0], "echo") && words[1] == "last":
			m.whole = true
			return
		case len(words) > 2 && words[0] == "evalsha":
			n, _ := strconv.Atoi(words[2])
			running = words[1]
			m.scripts[running] = wordsOf(line, 3+n)[3:]
		case strings.HasSuffix(line[:strings.IndexByte(line+"]", ']')], " lua"):
			for _, key := range keysOf(words[0], line) {
				if !slices.Contains(m.scripts[running], key) {
					m.undeclared[words[0]+" of "+anyGrant.ReplaceAllString(key, "ID")] = true
				}
			}
		}
	}
}

// keysOf are the keys of a command that a script may call.
func keysOf(command, line string) []string {
	switch command {
	case "TIME":
		return nil
	case "MGET", "DEL", "UNLINK":
		return wordsOf(line, 1000)[1:]
	case "XINFO":
		return wordsOf(line, 3)[2:]
	}
	return wordsOf(line, 2)[1:]
}
