// Package devmode stands in for SPIRE on a developer's machine: a certificate authority that lives
// in memory, and a real SPIFFE Workload API. Make a CA with NewCA, give it to NewWorkloadAPI, Add the
// identities, and Run it.
//
// One identity has one Unix socket, so whoever can open the socket is that workload, and nothing
// needs to be attested. That is right for one person's machine and for tests, and wrong for
// everything else: the sockets can be opened by their owner alone (0600, in a directory that nobody
// else can write), nothing listens on a network, and the CA's key is never written to a file.
package devmode
