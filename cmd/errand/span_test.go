package main

import (
	"strings"
	"testing"
	"time"
)

// TestSpan: below an hour nothing is lost but parts of a second, and what is shown is never more than what there is.
func TestSpan(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0s", 999 * time.Millisecond: "0s", 59*time.Second + 999*time.Millisecond: "59s", time.Minute: "1m", time.Minute + time.Second: "1m1s",
		9*time.Minute + 40*time.Second: "9m40s", 10 * time.Minute: "10m", time.Hour - time.Nanosecond: "59m59s",
		time.Hour: "1h", time.Hour + 59*time.Second: "1h", 2*time.Hour - time.Second: "1h59m", 9*time.Hour + 59*time.Minute: "9h59m",
		10 * time.Hour: "10h", 11*time.Hour - time.Second: "10h", 48*time.Hour - time.Second: "47h", 48 * time.Hour: "2d", 720 * time.Hour: "30d",
	} {
		if got := span(d); got != want {
			t.Errorf("%s is shown as %s; want %s", d, got, want)
		}
	}
	for d := time.Duration(0); d < 10*time.Hour; d += 997 * time.Millisecond {
		shown, err := time.ParseDuration(span(d))
		lost := time.Second
		if d >= time.Hour {
			lost = time.Minute
		}
		if err != nil || shown > d || d-shown >= lost || len(span(d)) > len("59m59s") || strings.Contains(span(d), ".") {
			t.Fatalf("%s is shown as %s (%v)", d, span(d), err)
		}
	}
}
