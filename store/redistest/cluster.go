package redistest

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"
)

// StartCluster starts a Redis Cluster of three primaries, and returns them when it is whole.
func StartCluster(t testing.TB, args ...string) []*Server {
	t.Helper()
	const nodes, slots = 3, 16384
	var servers []*Server
	var buses []int
	for i := range nodes {
		bus := FreePort(t)
		s := Start(t, append([]string{"--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf",
			"--cluster-port", strconv.Itoa(bus), "--cluster-node-timeout", "2000"}, args...)...)
		servers, buses = append(servers, s), append(buses, bus)
		s.Must("CLUSTER", "SET-CONFIG-EPOCH", strconv.Itoa(i+1))
		s.Must("CLUSTER", "ADDSLOTSRANGE", strconv.Itoa(i*slots/nodes), strconv.Itoa((i+1)*slots/nodes-1))
	}
	for i, s := range servers[1:] {
		servers[0].Must("CLUSTER", "MEET", "127.0.0.1", strconv.Itoa(s.port), strconv.Itoa(buses[i+1]))
	}
	for _, s := range servers {
		waitWhole(t, s, nodes)
	}
	return servers
}

func waitWhole(t testing.TB, s *Server, nodes int) {
	t.Helper()
	want := []string{"cluster_state:ok", fmt.Sprintf("cluster_known_nodes:%d", nodes), fmt.Sprintf("cluster_size:%d", nodes)}
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		text := s.Must("CLUSTER", "INFO")
		whole := true
		for _, w := range want {
			whole = whole && strings.Contains(text, w+"\r")
		}
		if whole {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the cluster does not come together: %s", text)
		}
	}
}

// ClusterURL is a cluster's address for a store.
func ClusterURL(servers []*Server) string { return "redis+cluster://" + servers[0].Addr() }
