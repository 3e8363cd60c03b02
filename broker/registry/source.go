package registry

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"github.com/errandhq/errand/broker"
)

// Bounds of the sources. Each request with a bearer token is compared with all of them.
const (
	MaxSources   = 256
	MaxSourceURI = 256 // bytes of one
	maxOfSource  = 64  // entries of each of its lists
)

// Source registers something outside that may say when work has ended. Either ID or TokenSHA256 is required,
// and Source with the latter.
type Source struct {
	Name    string `yaml:"name"` // Small letters, digits and -.
	Owner   string `yaml:"owner"`
	Contact string `yaml:"contact"` // Optional.

	Source []string `yaml:"source"` // What it calls itself in its CloudEvents. Its ID when left out.

	ID          string `yaml:"id"`           // Its SPIFFE ID: it comes to the workload listener.
	TokenSHA256 string `yaml:"token_sha256"` // Of its bearer token, in hexadecimal: it comes to the public listener.

	Kinds     []string `yaml:"kinds"`     // Of reference that it may speak of, as k8s/job.
	Workloads []string `yaml:"workloads"` // Whose tasks it may end: SPIFFE IDs, and ones that end in /*.
}

var sourceName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,62}[a-z0-9])?$`)

func (r *Registry) addSource(s Source) error {
	switch {
	case !sourceName.MatchString(s.Name):
		return errors.New("name must have 1 to 64 small letters, digits and -; the audit log shows it")
	case slices.ContainsFunc(r.sources, func(o broker.SourceRegistration) bool { return o.Name == s.Name }):
		return errors.New("name is a duplicate; register each source once")
	case strings.TrimSpace(s.Owner) == "":
		return errors.New("owner is missing; name the team or person who answers for this source")
	case (s.ID == "") == (s.TokenSHA256 == ""):
		return errors.New("id and token_sha256 are how it proves itself: give it exactly one of them")
	}
	out := broker.SourceRegistration{Name: s.Name, Owner: s.Owner, Contact: s.Contact}
	if err := r.proof(&out, s); err != nil {
		return err
	}
	if s.ID != "" && len(s.Source) == 0 {
		s.Source = []string{s.ID}
	}
	var err error
	if out.URIs, err = r.sourceURIs(s.Source); err != nil {
		return err
	}
	if err := someOf("kinds", s.Kinds, broker.CheckRefKind); err != nil {
		return err
	}
	if err := someOf("workloads", s.Workloads, checkSubject); err != nil {
		return err
	}
	out.Kinds, out.Workloads = slices.Clone(s.Kinds), slices.Clone(s.Workloads)
	r.sources = append(r.sources, out)
	return nil
}

// proof reads how the source proves itself. No two may do it in the same way: they would be one.
func (r *Registry) proof(out *broker.SourceRegistration, s Source) error {
	if s.ID != "" {
		id, err := workloadID(s.ID)
		if err != nil {
			return fmt.Errorf("id: %w", err)
		}
		out.ID = id
	} else {
		digest, err := hex.DecodeString(s.TokenSHA256)
		if err != nil || len(digest) != sha256.Size {
			return fmt.Errorf("token_sha256 must have %d hexadecimal digits, as sha256sum prints them; the token itself is not for this file", 2*sha256.Size)
		}
		out.Token = [sha256.Size]byte(digest)
		if out.Token == sha256.Sum256(nil) {
			return errors.New("token_sha256 is that of nothing; hash the token")
		}
	}
	for _, o := range r.sources {
		if o.ID == out.ID && o.Token == out.Token {
			return fmt.Errorf("it proves itself as the source %s does; give each its own id or token", o.Name)
		}
	}
	return nil
}

// sourceURIs reads what a source calls itself, which no other source may.
func (r *Registry) sourceURIs(uris []string) ([]string, error) {
	err := someOf("source", uris, func(uri string) error {
		u, err := url.Parse(uri)
		if err != nil || u.String() != uri || uri == "" || len(uri) > MaxSourceURI || strings.ContainsFunc(uri, func(c rune) bool { return c <= ' ' || c > '~' }) {
			return fmt.Errorf("source has %q, which is no URI of at most %d bytes; give it as the source attribute of its events has it", uri, MaxSourceURI)
		}
		for _, o := range r.sources {
			if slices.Contains(o.URIs, uri) {
				return fmt.Errorf("source has %q, which the source %s speaks for", uri, o.Name)
			}
		}
		return nil
	})
	return slices.Clone(uris), err
}

// someOf wants a list of good entries, each once.
func someOf(field string, list []string, check func(string) error) error {
	if len(list) == 0 || len(list) > maxOfSource {
		return fmt.Errorf("%s has %d entries; 1 to %d are needed", field, len(list), maxOfSource)
	}
	for i, entry := range list {
		if slices.Contains(list[:i], entry) {
			return fmt.Errorf("%s has %q twice", field, entry)
		}
		if err := check(entry); err != nil {
			return err
		}
	}
	return nil
}

// checkSubject wants a workload, or a tree of them.
func checkSubject(subject string) error {
	if _, tree := strings.CutSuffix(subject, "/*"); !tree {
		if _, err := workloadID(subject); err != nil {
			return fmt.Errorf("workloads: %w", err)
		}
		return nil
	}
	if err := (broker.Selector{Subject: subject}).Validate(); err != nil {
		return fmt.Errorf("workloads has %q, which is neither a SPIFFE ID nor one that ends in /*", subject)
	}
	return nil
}
