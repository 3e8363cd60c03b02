// Package brokertest runs a real broker in a test's process: real tasks and policy, real signatures, a
// real revocation feed, mutual TLS with a CA of its own, and a store in memory. Nothing is mocked, nothing
// but this program is needed, and it listens on loopback addresses alone. Start with New.
//
//	func TestExport(t *testing.T) {
//		b := brokertest.New(t)
//		orders := b.Serve("orders", shop.Handler(b.Verifier("orders")))
//		client := b.Client("export")
//
//		err := export.Run(t.Context(), client, orders)
//		if err != nil {
//			t.Fatal(err)
//		}
//		b.AssertIssued(t, "orders", "orders:read")
//		b.AssertLeastPrivilege(t)
//	} // fails if a task was left open
//
// # Who there is
//
// A workload or server is named by its SPIFFE ID, or by the path alone: "export" is
// "spiffe://test/export". By default there is whatever a test names, and a task may have whatever it
// asks for (AllowAll). With WithInventory there is what the file registers, and the trust domain is
// that of the file: what is refused in the test is refused in production.
//
// Client makes a workload's client, and Verifier a resource server's. Code that makes its own finds
// everything in Env.
//
// # How a token reaches a server
//
// Serve runs a handler over mutual TLS as the audience's server, which is how it is in production.
// An httptest.Server, or one of the test's own, is made known with Host; a task's HTTPClient sends a
// token nowhere else.
//
// Tokens are bound to the certificate of the workload that they were issued to, and Verifier checks
// that. A plain HTTP request shows no certificate: it is taken to come from the workload that the
// token was issued to, so that httptest.NewServer and httptest.NewRecorder work. What a thief meets is
// seen over TLS only.
//
// # Time
//
// It stands still unless Advance moves it, for the broker, its store, its keys, and for the clients and
// verifiers that were made here; so nothing lapses because a machine is slow. Advance lets happen
// what would have happened: clients send their heartbeats, what is due lapses or expires, the
// verifiers hear of it and prove that they are fresh. After
//
//	b.DropHeartbeats(task.ID())
//	b.Advance(31 * time.Second)
//
// the task has lapsed, its tokens are refused, and the client knows. Tokens that are older than their
// life are refused, and the client gets new ones. Verifiers do not become stale, unless PauseFeed or
// Outage keeps them from hearing. Requests that are made while Advance runs may meet either time.
// Contexts, and time.Now, go by the real clock. RealTime lets time run; Advance then jumps.
//
// A client that was not made by Client has the real clock, and sends its heartbeats by it: Advance
// by more than its lease ends its tasks.
//
// # What goes wrong
//
// Revoke and Quarantine do what an operator does, and return when every verifier knows. A workload
// learns it as in production: from its stream of events once a task is a second old, or else from its
// next token or heartbeat, which Advance brings about. Outage,
// PauseFeed, DropHeartbeats and DenyNext break one thing each. Everything is whole again at the end
// of the test, which is when clients and verifiers are closed.
//
// A Broker's methods may be called from any goroutine; those that fail the test, from the test's own.
package brokertest
