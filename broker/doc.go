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
//   - a task that has ended never becomes active again, and issues nothing more;
//   - whatever ends a task ends everything below it, in the same write;
//   - an end with its key is in force on this replica also while the store is away, and said to be not
//     durable until it is in the store;
//   - nobody acts in the name of another but below a task of that one, by its delegation, and within what each of
//     them may have; what is said against one of them is said against the task;
//   - no life is ever made longer than the task's deadline, the policy's cap or the SVID's;
//   - an error of a port means no token.
//
// The package imports no adapter. Its ports are small interfaces in ports.go and store.go, whose
// comments are their contracts.
package broker
