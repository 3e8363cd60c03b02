// Package exec runs a command inside a task, and gives it the task's tokens. Use Run; Config says what
// there is to choose.
//
// It promises that the command's exit code is kept and its standard streams are its own; that the token
// in its folder is good as long as the task is, and always lies beside the certificate that it goes with;
// that the task has ended when Run returns, or the error says by when its tokens are dead all the same;
// and that a task that ends first takes the command with it. When the process that runs this is killed,
// the kernel of Linux kills the command, and the next Run removes the files.
package exec
