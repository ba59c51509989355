// Package guest is what makes one guest out of the other rooms: it reads SPECs,
// opens device halves, assembles a machine around them, keeps the state
// directory and serves the control API that ps, inspect, pause and the rest use.
//
// It is not the machine (package vmm), and it is not the command line: it never
// prints, and knows nothing of terminals beyond bytes and sizes.
//
// # One process, one guest
//
// A guest lives in the process that called Start. The Dir that Store.Create
// returned holds an exclusive lock on the guest's state directory from then to
// the end of the process; whoever can take that lock knows that the guest is
// gone. There is no daemon: ps reads the directories and asks the sockets.
//
// # Ownership
//
// A Guest owns its device halves, agent client, control server and machine. The
// machine borrows the halves: a reboot closes the machine and makes a new one
// around the same halves. Close ends all of them, in the order control server, session,
// machine, halves.
//
// # Locks
//
// Guest.mu guards the current machine and status; it is never held over a call
// into machine, agent or a half. hub.mu guards attached clients.
package guest
