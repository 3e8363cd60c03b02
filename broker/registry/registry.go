// Package registry is the inventory: which workloads and audiences exist, who answers for them, and
// the most that they may ask for; and which sources outside may say that work has ended. Load one YAML file with Load, or its text with Parse.
//
// The whole file is checked before any of it counts, and a mistake is reported with its place. What
// Parse returns never changes; its revision is a digest of the text.
package registry

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/errandhq/errand/broker"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// MaxFile bounds the file's size in bytes.
const MaxFile = 4 << 20

// Registry is one checked revision of the inventory. It implements broker.Registry.
type Registry struct {
	workloads map[spiffeid.ID]broker.WorkloadRegistration
	sorted    []broker.WorkloadRegistration // the workloads, by ID
	audiences map[string]broker.AudienceRegistration
	serves    map[spiffeid.ID][]string // by server: its audiences, sorted
	sources   []broker.SourceRegistration
	revision  string
}

// Load reads and checks the file at path.
func Load(path string) (*Registry, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("registry: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, MaxFile+1))
	if err != nil {
		return nil, fmt.Errorf("registry: read %s: %w", path, err)
	}
	r, err := Parse(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return r, nil
}

// Parse checks a registry file's text. Its error joins all mistakes of the audiences, or of the workloads
// and sources.
func Parse(text []byte) (*Registry, error) {
	if len(text) > MaxFile {
		return nil, fmt.Errorf("registry: the file is larger than %d bytes", MaxFile)
	}
	file, err := decode(text)
	if err != nil {
		return nil, err
	}
	digest := sha256.Sum256(text)
	r := &Registry{
		workloads: map[spiffeid.ID]broker.WorkloadRegistration{},
		audiences: map[string]broker.AudienceRegistration{},
		serves:    map[spiffeid.ID][]string{},
		revision:  hex.EncodeToString(digest[:8]),
	}
	var mistakes []error
	for i, a := range file.Audiences {
		if err := r.addAudience(a); err != nil {
			mistakes = append(mistakes, fmt.Errorf("registry: audiences[%d] (%s): %w", i, a.Name, plain(err)))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(r.audiences)) {
		for _, id := range r.audiences[name].Servers {
			r.serves[id] = append(r.serves[id], name)
		}
	}
	if mistakes != nil { // a workload that names one of them would be wrong for that alone
		return nil, errors.Join(mistakes...)
	}
	for i, w := range file.Workloads {
		if err := r.addWorkload(w); err != nil {
			mistakes = append(mistakes, fmt.Errorf("registry: workloads[%d] (%s): %w", i, w.ID, plain(err)))
		}
	}
	if len(file.Sources) > MaxSources {
		mistakes = append(mistakes, fmt.Errorf("registry: sources has %d entries; at most %d are allowed", len(file.Sources), MaxSources))
		file.Sources = nil
	}
	for i, s := range file.Sources {
		if err := r.addSource(s); err != nil {
			mistakes = append(mistakes, fmt.Errorf("registry: sources[%d] (%s): %w", i, s.Name, plain(err)))
		}
	}
	if mistakes != nil {
		return nil, errors.Join(mistakes...)
	}
	r.sorted = slices.SortedFunc(maps.Values(r.workloads), func(a, b broker.WorkloadRegistration) int {
		return strings.Compare(a.ID.String(), b.ID.String())
	})
	return r, nil
}

// plain does not speak of a request: the mistake is in the file.
func plain(err error) error {
	var bad *broker.Invalid
	if errors.As(err, &bad) {
		return errors.New(bad.Field + " " + bad.Detail)
	}
	return err
}

// Workload implements broker.Registry.
func (r *Registry) Workload(id spiffeid.ID) (broker.WorkloadRegistration, error) {
	w, ok := r.workloads[id]
	if !ok {
		return broker.WorkloadRegistration{}, broker.ErrUnregistered
	}
	return w, nil
}

// Workloads implements broker.Registry.
func (r *Registry) Workloads() []broker.WorkloadRegistration { return r.sorted }

// Audience implements broker.Registry.
func (r *Registry) Audience(name string) (broker.AudienceRegistration, error) {
	a, ok := r.audiences[name]
	if !ok {
		return broker.AudienceRegistration{}, broker.ErrNotFound
	}
	return a, nil
}

// Serves returns the audiences that have the ID among their servers, sorted. It is asked about each request
// of somebody who is no workload.
func (r *Registry) Serves(id spiffeid.ID) []string { return slices.Clone(r.serves[id]) }

// Source implements broker.Registry.
func (r *Registry) Source(id spiffeid.ID) (broker.SourceRegistration, error) {
	for _, s := range r.sources {
		if s.ID == id && !id.IsZero() {
			return s, nil
		}
	}
	return broker.SourceRegistration{}, broker.ErrUnregistered
}

// SourceByToken implements broker.Registry. It looks at all of them, whichever it is.
func (r *Registry) SourceByToken(digest [sha256.Size]byte) (broker.SourceRegistration, error) {
	found := -1
	for i, s := range r.sources {
		same := subtle.ConstantTimeCompare(s.Token[:], digest[:])
		if !s.ID.IsZero() {
			same = 0
		}
		found = subtle.ConstantTimeSelect(same, i, found)
	}
	if found < 0 {
		return broker.SourceRegistration{}, broker.ErrUnregistered
	}
	return r.sources[found], nil
}

// TrustDomains counts the registered workloads by their trust domain.
func (r *Registry) TrustDomains() map[spiffeid.TrustDomain]int {
	counts := map[spiffeid.TrustDomain]int{}
	for id := range r.workloads {
		counts[id.TrustDomain()]++
	}
	return counts
}

// Revision is a digest of the file's text.
func (r *Registry) Revision() string { return r.revision }
