package verify

import "github.com/errandhq/errand/sdk/internal/steer"

// For brokertest, whose time is not real.
func init() {
	steer.Catch = func(verifier any) bool {
		v := verifier.(*Verifier)
		if v.running.isClosed() {
			return false
		}
		if v.keys.age(v.config.Now()) > maxKeyAge {
			v.keys.ask()
		}
		v.wantProof()
		v.acks.hurry()
		return true
	}
}
