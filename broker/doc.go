// Package broker is the domain: tasks, the grants that live and die with them, and the denials that
// tell verifiers so. Start with Broker and its verbs Begin, Issue, Heartbeat, End and Revoke; Delegate and Join
// bring other workloads into a task, and Adopt other processes of its own.
//
//	workload --SVID--> identity --Workload--> Begin / Issue
//	                                            |  Registry   is it known, and who owns it?
//	                                            |  Policy     may it? -> Decision
//	                                            |  Store      one atomic commit -> Grant
//	                                            |  Auditor    durable, or the grant is taken back
//	                                            v  Minter     the grant, signed -> Token
//	                                         answer
//
//	caller, operator, Sweep --> End / Revoke --> Store (one entry) --> Watch --> Announcer --> verifiers
//	                                                \--> Auditor --> Receipt
//
// What holds, whoever calls and in whatever order:
//
//   - a token leaves only after its grant is committed and its audit event is durable;
//   - what has ended has its audit event within RecordBound, from whichever process is left: see below;
//   - a task that has ended never becomes active again, and issues nothing more;
//   - whatever ends a task ends everything below it, in the same write;
//   - an end with its key is in force on this replica also while the store is away, and said to be not
//     durable until it is in the store;
//   - nobody acts in the name of another but below a task of that one, by its delegation, and within what each of
//     them may have; what is said against one of them is said against the task;
//   - no life is ever made longer than the task's deadline, the policy's cap or the SVID's;
//   - an error of a port means no token.
//
// The store is asked for an end before the Auditor, which must not hold it up, so that a process that is killed in between
// leaves an end without its event. Its receipt in the store has the event's ID, and that says which process was to record
// it, and in which round. Each process tells the others on the Board, about once a second, before which round all is recorded;
// of one that has told nothing for some time, or does not get on, they ask the store for the ends from that round on, and
// record those themselves. Nothing of this is on the way of an end but the making of that ID. Of what is not ended by its ID the
// store keeps no receipt; the Board has its event before the store is asked.
//
// The package imports no adapter. Its ports are small interfaces in ports.go and store.go, whose
// comments are their contracts.
package broker
