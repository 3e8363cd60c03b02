package redis

import (
	"crypto/sha1"
	"embed"
	"encoding/hex"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/errandhq/errand/broker"
)

//go:embed scripts
var texts embed.FS

// script is one program that Redis runs, known there by its SHA-1.
type script struct {
	name   string
	source string
	sum    string
	writes bool    // a failure may leave the call done
	many   bool    // one run makes many calls
	keys   [][]any // by shard: those of the shard that every run declares
}

// scripts are all of them. Each declares the keys of the shard that it uses, is put together from the
// parts of scripts/lib that it needs, and says whether it works when memory is full. Those that end
// with "calls" make many calls in one run.
type scripts struct {
	open, grant, heartbeat, end, control, lookup, list, watch, record, post, notes, probe *script
}

func newScripts(prefix string, shards int) scripts {
	const writes, reads, full = true, false, true
	make := func(name string, writes, oom bool, keys string, parts ...string) *script {
		sc := &script{name: name, writes: writes, many: slices.Contains(parts, "calls")}
		sc.source = source(name, oom, strings.Fields(keys), parts)
		sum := sha1.Sum([]byte(sc.source))
		sc.sum = hex.EncodeToString(sum[:])
		for shard := range shards {
			var list []any
			for _, key := range strings.Fields(keys) {
				list = append(list, keyOf(prefix, shard, key))
			}
			sc.keys = append(sc.keys, list)
		}
		return sc
	}
	return scripts{
		open:      make("open", writes, full, "meta feed denials locks tasks requests lists due alarms usage"),
		grant:     make("grant", writes, !full, "meta tasks requests lists due alarms usage", "clock", "tasks", "lists", "grants", "joins", "quota", "settle", "calls"),
		heartbeat: make("heartbeat", writes, full, "meta tasks alarms", "clock", "tasks"),
		end:       make("end", writes, full, "meta tasks requests lists due alarms usage feed", "clock", "tasks", "lists", "grants", "quota", "feed", "calls"),
		control:   make("control", writes, full, "meta feed denials locks", "clock", "feed", "controls"),
		lookup:    make("lookup", reads, full, "meta tasks", "clock", "tasks", "grants", "calls"),
		list:      make("list", reads, full, "meta tasks requests lists due alarms usage", "clock", "tasks", "lists", "quota", "settle"),
		watch:     make("watch", reads, full, "meta feed denials locks", "clock", "feed", "controls"),
		record:    make("record", writes, full, "meta", "clock"),
		post:      make("post", writes, !full, "meta", "clock", "board"),
		notes:     make("notes", reads, full, "meta", "clock", "board"),
		probe:     make("probe", reads, full, "meta"),
	}
}

// keyOf names a key of a shard. All of them share one hash tag, and so one slot.
func keyOf(prefix string, shard int, name string) string {
	return fmt.Sprintf("%s{p%02d}:%s", prefix, shard, name)
}

// source puts a script together: its flags, its keys, the domain's constants, the parts, and itself as
// a function, so that whatever it returns goes through finish. One that makes many calls defines main.
func source(name string, oom bool, keys, parts []string) string {
	var b strings.Builder
	b.WriteString("#!lua")
	if oom {
		b.WriteString(" flags=allow-oom")
	}
	b.WriteString("\n")
	for _, part := range parts {
		b.WriteString(text("lib/" + part))
	}
	switch {
	case parts == nil:
		b.WriteString(text(name))
	case slices.Contains(parts, "calls"):
		fmt.Fprintf(&b, "%sreturn finish(make_calls(main))\n", text(name))
	case slices.Contains([]string{"record", "post", "notes"}, name): // which are no epoch's
		fmt.Fprintf(&b, "local function main()\n%send\nreturn finish(main())\n", text(name))
	default:
		fmt.Fprintf(&b, "local function main()\n%send\nif not known then return cmsgpack.pack({'epoch', ARGV[2]}) end\nreturn finish(main())\n", text(name))
	}
	return inline(b.String(), keys)
}

var word = regexp.MustCompile(`\b[A-Z][A-Z_]+\b`)

// inline puts what the words in capitals stand for in their place: the keys that every run declares, and
// the domain's constants. As locals each run would have to make them, and every function to find them.
func inline(text string, keys []string) string {
	words := map[string]int64{
		"NKEYS": int64(len(keys)), "ID": bareLength, "MARGIN": broker.Margin.Milliseconds(),
		"DENIAL_LIFE": (broker.MaxTokenLife + broker.Margin).Milliseconds(), "MAX_DEPTH": broker.MaxDepth,
		"MIN_LIFE": broker.MinTokenLife.Milliseconds(), "MAX_NOTES": broker.MaxNotes,
		"HUGE": 1 << 53, // above it numbers lose their last digits
	}
	return word.ReplaceAllStringFunc(text, func(w string) string {
		if n, ok := words[w]; ok {
			return strconv.FormatInt(n, 10)
		}
		if i := slices.Index(keys, strings.ToLower(w)); i >= 0 {
			return fmt.Sprintf("KEYS[%d]", i+1)
		}
		return w
	})
}

func text(name string) string {
	b, err := texts.ReadFile("scripts/" + name + ".lua")
	if err != nil {
		panic(err) // it is part of the program
	}
	return string(b)
}
