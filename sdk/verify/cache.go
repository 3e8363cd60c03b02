package verify

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	stdjson "encoding/json"

	"github.com/go-jose/go-jose/v4/json"

	"github.com/errandhq/errand/sdk/wire"
)

const (
	cacheMagic      = "errand verifier cache 1\n"
	maxCacheBytes   = 16 << 20
	maxCacheEntries = 10_000 // more denials are not written down
	maxCacheAge     = time.Hour
)

// cached is what a CacheFile says: what was known when it was saved, how old that was then, and by
// which clocks the time since can be told. It has no address of the broker, and nothing secret.
type cached struct {
	Issuer   string `json:"issuer"`
	Audience string `json:"audience"`

	Saved  time.Time     `json:"saved_at"`
	Boot   string        `json:"boot"`   // of the machine
	Uptime time.Duration `json:"uptime"` // since then

	Keys    stdjson.RawMessage `json:"keys"` // the issuer's key set
	KeysAge time.Duration      `json:"keys_age"`

	Position string           `json:"position"`
	FeedAge  time.Duration    `json:"feed_age"`
	Swept    int64            `json:"swept"`
	Entries  []wire.FeedEntry `json:"entries"`
}

// encode returns the file's bytes: a first line that says what it is, one with the sum of the rest,
// and JSON.
func (c cached) encode() ([]byte, error) {
	body, err := stdjson.Marshal(c)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(body)
	return append([]byte(cacheMagic+hex.EncodeToString(sum[:])+"\n"), body...), nil
}

// decodeCached reads what encode writes, and nothing that was changed since by accident.
func decodeCached(data []byte) (c cached, err error) {
	rest, ok := bytes.CutPrefix(data, []byte(cacheMagic))
	line, body, found := bytes.Cut(rest, []byte("\n"))
	sum := sha256.Sum256(body)
	if !ok || !found || string(line) != hex.EncodeToString(sum[:]) {
		return c, errors.New("it is not a whole cache file of this version")
	}
	if err := json.Unmarshal(body, &c); err != nil {
		return c, errors.New("its JSON is not a cache")
	}
	if c.KeysAge < 0 || c.FeedAge < 0 || c.KeysAge > maxCacheAge || c.FeedAge > maxCacheAge || c.Uptime < 0 || c.Swept < 0 {
		return c, errors.New("an age in it makes no sense")
	}
	return c, nil
}

// elapsed is how long ago the file was saved, by the clock that says more. A clock that went back, or
// one of another life of the machine, says nothing that could be relied on.
func (c cached) elapsed(now time.Time) (time.Duration, error) {
	boot, up, err := bootClock()
	if err != nil {
		return 0, err
	}
	byWall := now.Round(0).Sub(c.Saved)
	if boot != c.Boot || byWall < 0 || up < c.Uptime {
		return 0, errors.New("the machine was started anew since, or its clock was set back")
	}
	since := max(byWall, up-c.Uptime)
	if since > maxCacheAge { // and might be too much to be added to
		return 0, fmt.Errorf("it was saved %s ago", since)
	}
	return since, nil
}

// restore takes in the CacheFile if that is fresh enough to serve on, and reports whether it was.
func (v *Verifier) restore() bool {
	if v.config.CacheFile == "" {
		return false
	}
	err := v.tryRestore()
	switch {
	case err == nil:
		_, old := v.view.freshness(v.config.Now())
		v.config.Logger.Warn("verify: started from the cache file, without the broker", "audience", v.config.Audience, "file", v.config.CacheFile, "age", old)
	case !errors.Is(err, fs.ErrNotExist):
		v.config.Logger.Warn("verify: the cache file is not used", "audience", v.config.Audience, "file", v.config.CacheFile, "error", err)
	}
	return err == nil
}

func (v *Verifier) tryRestore() error {
	data, err := readOwn(v.config.CacheFile)
	if err != nil {
		return err
	}
	c, err := decodeCached(data)
	if err != nil {
		return err
	}
	if c.Issuer != v.config.Issuer || c.Audience != v.config.Audience {
		return fmt.Errorf("it is for audience %q of %s", c.Audience, c.Issuer)
	}
	now := v.config.Now()
	since, err := c.elapsed(now)
	if err != nil {
		return err
	}
	keysAge, feedAge := c.KeysAge+since, c.FeedAge+since
	if keysAge > maxKeyAge || feedAge > v.config.MaxStale && v.config.OnStale != Accept {
		return fmt.Errorf("its keys are %s old, and its view of the feed is %s old", keysAge.Truncate(time.Millisecond), feedAge.Truncate(time.Millisecond))
	}
	keys, err := parseKeys(c.Keys)
	if err != nil {
		return err
	}
	p, err := parsePosition(c.Position)
	if err != nil {
		return err
	}
	view := newView(v.config) // another one: half of a file must leave no trace
	if err := view.restore(p, c.Entries, now.Add(-feedAge), c.Swept, now); err != nil {
		return err
	}
	v.view = view
	if v.keys.age(now) > keysAge {
		v.keys.done(keys, c.Keys, now.Add(-keysAge))
	}
	v.keys.ask()
	v.noteFresh()
	return nil
}

// saveCache keeps the CacheFile up to date, until ctx ends.
func (v *Verifier) saveCache(ctx context.Context) {
	ticker := time.NewTicker(v.config.MaxStale / proofsPerS)
	defer ticker.Stop()
	var said time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if err := v.saveOnce(); err != nil && time.Since(said) > sayAgain {
			said = time.Now()
			v.config.Logger.Warn("verify: the cache file was not written", "audience", v.config.Audience, "file", v.config.CacheFile, "error", err)
		}
	}
}

// saveOnce writes the file anew, if there is something to say that has not been said.
func (v *Verifier) saveOnce() error {
	boot, up, err := bootClock()
	if err != nil {
		return err
	}
	now := v.config.Now()
	c := cached{Issuer: v.config.Issuer, Audience: v.config.Audience, Saved: now.Round(0).UTC(), Boot: boot, Uptime: up}
	if !v.view.save(&c, now) {
		return nil
	}
	if len(c.Entries) > maxCacheEntries {
		return fmt.Errorf("there are %d denials, and at most %d are written down", len(c.Entries), maxCacheEntries)
	}
	c.Keys = v.keys.source()
	if c.KeysAge = v.keys.age(now); c.KeysAge > maxKeyAge || c.FeedAge > maxCacheAge {
		return nil
	}
	data, err := c.encode()
	if err != nil {
		return err
	}
	if len(data) > maxCacheBytes {
		return fmt.Errorf("it would have %d bytes, and at most %d are written", len(data), maxCacheBytes)
	}
	return replaceFile(v.config.CacheFile, data)
}

// replaceFile puts a file of our own in the place of what is there. It is not forced to the disk: one
// that a crash has damaged is found out, and one of before a crash is of no use.
func replaceFile(path string, data []byte) error {
	next := path + ".new"
	if err := os.Remove(next); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(next, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err := errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(next))
	}
	return os.Rename(next, path)
}

// readOwn reads a file that nobody else could have written: whoever can write it can make keys that
// this verifier believes. It waits for nobody, as it would for who writes to a pipe.
func readOwn(path string) ([]byte, error) {
	folder, err := os.Stat(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	if !safeFolder(folder) {
		return nil, fmt.Errorf("its folder %s belongs to another user, or others can write into it", filepath.Dir(path))
	}
	before, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	if !before.Mode().IsRegular() {
		return nil, errors.New("it is not a regular file")
	}
	f, err := openWithoutWait(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	stat, err := f.Stat()
	if err != nil {
		return nil, err
	}
	switch {
	case !os.SameFile(before, stat):
		return nil, errors.New("it is not a regular file")
	case stat.Mode().Perm()&0o022 != 0 || !ownedByUs(stat):
		return nil, errors.New("others can write it, or it belongs to another user")
	}
	data, err := io.ReadAll(io.LimitReader(f, maxCacheBytes+1))
	if err == nil && len(data) > maxCacheBytes {
		err = fmt.Errorf("it has more than %d bytes", maxCacheBytes)
	}
	return data, err
}

// save writes down what is known, all as of one moment. It returns false when that is nothing, or not
// all.
func (v *view) save(c *cached, now time.Time) bool {
	v.mu.RLock()
	defer v.mu.RUnlock()
	if v.full || v.freshAsOf.IsZero() || v.position.Numbers == nil || v.setBack(now) {
		return false
	}
	c.Position, c.FeedAge, c.Swept = v.position.String(), max(0, age(now, v.freshAsOf)), v.swept
	c.Entries = v.written()
	return true
}

// restore takes in what was saved, as a snapshot that was fresh at a moment. What has expired by now
// is left out, as by a sweep.
func (v *view) restore(p wire.Position, entries []wire.FeedEntry, fresh time.Time, swept int64, now time.Time) error {
	if err := v.snapshot(p, entries, now); err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.freshAsOf = fresh
	v.swept = max(swept, now.Unix())
	return nil
}

// written are entries that deny what is denied for as long (deny adds the second that is taken away
// here). They are for this audience alone, and do not say which
// numbers the ones of the feed had that no selector needs.
func (d *denials) written() []wire.FeedEntry {
	out := make([]wire.FeedEntry, 0, d.size())
	for id, until := range d.ids {
		kind := wire.KindGrant
		if strings.HasPrefix(id, "tsk_") {
			kind = wire.KindTask
		}
		out = append(out, wire.FeedEntry{Kind: kind, ID: id, Until: time.Unix(until-1, 0).UTC()})
	}
	for kid, until := range d.keys {
		out = append(out, wire.FeedEntry{Kind: wire.KindKey, ID: kid, Until: time.Unix(until-1, 0).UTC()})
	}
	for place, list := range d.selectors {
		subject := place
		if strings.HasSuffix(place, "/") {
			subject += "*"
		}
		for _, s := range list {
			out = append(out, wire.FeedEntry{
				Kind: wire.KindSelector, Shard: s.shard, Number: s.number, Subject: subject, Scope: s.scope, Until: time.Unix(s.until-1, 0).UTC(),
			})
		}
	}
	return out
}
