package verify

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"strings"
)

// maxEventBytes bounds one line, and all the lines of one event, of the stream.
const maxEventBytes = 1 << 20

// errEventTooLong says that an event is longer than maxEventBytes. What it said is in a snapshot.
var errEventTooLong = errors.New("an event is too long")

// event is one server-sent event. Unlike in a browser, the id is the event's own, and no earlier
// one's: an event without an id does not move the reader's position.
type event struct {
	name string
	id   string
	data []byte
}

// events reads an event stream (HTML Living Standard §9.2.5 and §9.2.6).
type events struct {
	r      *bufio.Reader
	line   []byte
	begun  bool
	skipLF bool // the last line ended in CR, so that an LF would belong to it
}

func newEvents(r io.Reader) *events { return &events{r: bufio.NewReader(r)} }

// next returns the next event that has data. An event that the stream ends within is none. It
// returns io.EOF at the end, errEventTooLong, or the stream's error.
func (s *events) next() (event, error) {
	var e event
	size := 0
	for {
		line, err := s.readLine()
		if err != nil {
			return event{}, err
		}
		if len(line) == 0 {
			if e.data == nil {
				e, size = event{}, 0
				continue
			}
			e.data = bytes.TrimSuffix(e.data, []byte("\n"))
			return e, nil
		}
		if size += len(line); size > maxEventBytes {
			return event{}, errEventTooLong
		}
		e.field(line)
	}
}

// field takes in one line. Comments and unknown fields mean nothing.
func (e *event) field(line []byte) {
	name, value, _ := bytes.Cut(line, []byte(":"))
	value = bytes.TrimPrefix(value, []byte(" "))
	switch string(name) {
	case "event":
		e.name = string(value)
	case "id":
		if id := string(value); !strings.Contains(id, "\x00") {
			e.id = id
		}
	case "data":
		e.data = append(append(e.data, value...), '\n')
	}
}

// readLine returns a line without its end, which is CR, LF or both. It is valid until the next
// call.
func (s *events) readLine() ([]byte, error) {
	s.line = s.line[:0]
	for {
		c, err := s.r.ReadByte()
		if err != nil {
			return nil, err
		}
		if c == '\n' && s.skipLF {
			s.skipLF = false
			continue
		}
		s.skipLF = c == '\r'
		if c == '\r' || c == '\n' {
			line := s.line
			if !s.begun {
				s.begun = true
				line = bytes.TrimPrefix(line, []byte("\ufeff"))
			}
			return line, nil
		}
		if len(s.line) == maxEventBytes {
			return nil, errEventTooLong
		}
		s.line = append(s.line, c)
	}
}
