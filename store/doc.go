// Package store stands for what keeps the live tasks, grants, locks and denials of a broker. It has
// no code: the port is [broker.Store], whose comments are the contract, and the packages below fill
// or check it. Start with store/memory to read what a store does, with store/redis for brokers that run
// side by side, and with store/storetest to check a store.
//
// The contract in short:
//
//   - Every change happens whole or not at all, and every later call sees it.
//   - The store's clock alone decides who is alive. It never goes backwards, and a moment has passed
//     when that clock has reached it.
//   - What has ended stays ended. The first end wins, and whoever repeats it gets its receipt.
//   - An end is one write, however large the tree below: a task is alive only while all tasks above
//     it are.
//   - A task has one holder at a time, and a delegation lets one task join: who is late changes nothing.
//   - Each shard numbers its changes 1, 2, 3…. Grants carry the number that their shard had reached,
//     so that a denial by a property knows which grants came before it, without clocks.
//   - Everything goes away by time, nothing by count: a denial Margin after the last token that it
//     kills, a task Margin after its last token and its end.
package store
