// Package probe says what the KVM of this machine can do, for people: each
// finding with what it means and what to do about it.
//
// It changes nothing. CanRunLinux and Examine make a small VM for some
// milliseconds; nothing of it is left.
package probe
