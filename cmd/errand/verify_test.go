package main

import (
	"strings"
	"testing"

	"github.com/errandhq/errand/sdk/verify"
)

// TestVerdictNamesActors: of a delegated token it says who acts for whom.
func TestVerdictNamesActors(t *testing.T) {
	const chief, desk, clerk = "spiffe://prod/chief", "spiffe://prod/desk", "spiffe://prod/clerk"
	v := judge(&verify.Explanation{Grant: &verify.Grant{Workload: chief, Client: clerk, Actors: []string{clerk, desk}}})
	if v.Claims.Workload != chief || v.Claims.Client != clerk || len(v.Claims.Actors) != 2 {
		t.Errorf("claims %+v", v.Claims)
	}
	var out strings.Builder
	if printVerdict(&out, v); !strings.Contains(out.String(), clerk+" for "+desk+" for "+chief+"\n") {
		t.Errorf("got %s", out.String())
	}
}
