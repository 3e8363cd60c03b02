// Package sse reads streams of server-sent events (HTML Living Standard §9.2.5 and §9.2.6) from a broker: make a
// Reader with New and call Next. What it holds of a stream is bounded by MaxBytes.
package sse

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"strings"
)

// MaxBytes bounds one line, and all the lines of one event, of the stream.
const MaxBytes = 1 << 20

// ErrTooLong says that an event is longer than MaxBytes.
var ErrTooLong = errors.New("an event is too long")

// Event is one server-sent event. Unlike in a browser, the id is the event's own, and no earlier
// one's: an event without an id does not move the reader's position.
type Event struct {
	Name string
	ID   string
	Data []byte
}

// Reader reads an event stream.
type Reader struct {
	r      *bufio.Reader
	line   []byte
	begun  bool
	skipLF bool // the last line ended in CR, so that an LF would belong to it
}

// New makes a Reader of an answer's body.
func New(r io.Reader) *Reader { return &Reader{r: bufio.NewReader(r)} }

// Next returns the next event that has data. An event that the stream ends within is none. It
// returns io.EOF at the end, ErrTooLong, or the stream's error.
func (s *Reader) Next() (Event, error) {
	var e Event
	size := 0
	for {
		line, err := s.readLine()
		if err != nil {
			return Event{}, err
		}
		if len(line) == 0 {
			if e.Data == nil {
				e, size = Event{}, 0
				continue
			}
			e.Data = bytes.TrimSuffix(e.Data, []byte("\n"))
			return e, nil
		}
		if size += len(line); size > MaxBytes {
			return Event{}, ErrTooLong
		}
		e.field(line)
	}
}

// field takes in one line. Comments and unknown fields mean nothing.
func (e *Event) field(line []byte) {
	name, value, _ := bytes.Cut(line, []byte(":"))
	value = bytes.TrimPrefix(value, []byte(" "))
	switch string(name) {
	case "event":
		e.Name = string(value)
	case "id":
		if id := string(value); !strings.Contains(id, "\x00") {
			e.ID = id
		}
	case "data":
		e.Data = append(append(e.Data, value...), '\n')
	}
}

// readLine returns a line without its end, which is CR, LF or both. It is valid until the next
// call.
func (s *Reader) readLine() ([]byte, error) {
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
		if len(s.line) == MaxBytes {
			return nil, ErrTooLong
		}
		s.line = append(s.line, c)
	}
}
