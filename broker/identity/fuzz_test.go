package identity_test

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/errandhq/errand/broker/identity"
)

// canonical is what an ID looks like, in words other than go-spiffe's.
var canonical = regexp.MustCompile(`\Aspiffe://([a-z0-9._-]+)(?:/[A-Za-z0-9._-]+)+\z`)

func isCanonical(id string) bool {
	return len(id) <= identity.MaxID && canonical.MatchString(id) && len(canonical.FindStringSubmatch(id)[1]) <= identity.MaxTrustDomain &&
		!slices.ContainsFunc(strings.Split(id, "/"), func(segment string) bool { return segment == "." || segment == ".." })
}

// FuzzID: the ID that comes out is the one in the certificate, byte for byte, and is canonical; and
// every canonical one of a known domain is let in.
func FuzzID(f *testing.F) {
	for _, id := range []string{
		worker, "spiffe://" + theirs + "/a/b", "SPIFFE://" + ours + "/a", worker + "#", worker + "?", "spiffe://" + ours, "spiffe://[::1]/a",
		"spiffe://" + ours + "/%61", "spiffe://" + ours + "/../a", "spiffe://u@" + ours + ":1/a", "", "\x00", "spiffe://" + ours + "./a",
	} {
		f.Add(id)
	}
	h := newHouse(f, nil)
	f.Fuzz(func(t *testing.T, id string) {
		// Of other domains crypto/x509 reads fewer than SPIFFE allows: none with a dot at the end.
		want := isCanonical(id) && strings.HasPrefix(id, "spiffe://"+ours+"/")
		certs := h.root.issue(t, id).certs()
		if certs == nil {
			if want {
				t.Errorf("crypto/x509 cannot read %q", id)
			}
			return
		}
		w, err := h.source.Verify(certs, time.Now())
		if (err == nil) != want {
			t.Errorf("%q: %v", id, err)
		}
		if err == nil && w.ID.String() != id {
			t.Errorf("%q became %q", id, w.ID)
		}
	})
}

// FuzzNames: whatever is in the extension, there is no panic, and what is let in has the one URI
// name that crypto/x509 sees too.
func FuzzNames(f *testing.F) {
	for _, list := range [][]asn1.RawValue{
		{uri(worker)}, {uri(worker), uri(worker)}, {dns("a.example"), uri(worker)}, {}, {{Class: asn1.ClassContextSpecific, Tag: 6, IsCompound: true}},
	} {
		value, err := asn1.Marshal(list)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(value)
		f.Add(append(value, 0))
	}
	h := newHouse(f, nil)
	f.Fuzz(func(t *testing.T, value []byte) {
		certs := h.root.issue(t, worker, func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Value: value}}
		}).certs()
		if certs == nil {
			return
		}
		if w, err := h.source.Verify(certs, time.Now()); err == nil && (len(certs[0].URIs) != 1 || certs[0].URIs[0].String() != w.ID.String()) {
			t.Errorf("%x: %v was let in as %s", value, certs[0].URIs, w.ID)
		}
	})
}
