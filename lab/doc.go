// Package lab runs emulated hosts: machines with a hardware-style KVM for
// those that have none, or one that cannot run an ordinary kernel.
//
// A lab host is QEMU emulating an AMD machine with SVM and nested paging, a stock
// Debian kernel with kvm-amd in it, a root file system made from Debian packages, and
// the project's own binary. Guests inside are real guests of a real KVM, only slow.
// Commands run in a lab host by the same agent as in a guest (docs/guest-agent.md),
// so streams are 8-bit clean and the exit status is the command's.
//
// It is not a test framework (labtest is the part for tests), and nothing but
// the kernel room is known here: what runs inside is the caller's business.
//
// # What is where
//
//	CacheDir/lab/images/KEY/root.img   read-only for everybody; KEY is a hash of all that is in it
//	CacheDir/lab/resolved/REQUEST.json which KEY a list of packages led to, and from which apt lists
//	CacheDir/lab/.lock                 flock of the process that builds or removes images
//	CacheDir/lab/run/ID/               one lab host: logs and the files share. flock on ID/lock while it lives
//
// Images appear by one rename. What a host writes to its root goes to a temporary
// overlay that dies with it. Binaries, kernels and the caller's directories come in
// by 9p, so that no change of theirs builds an image anew.
//
// # Ownership
//
// A Host owns its QEMU process, its ports and its run directory from Start to
// Close. QEMU dies with the process that started it: by PR_SET_PDEATHSIG on a thread
// that lives as long as QEMU does, and should that signal not come, because the
// guest powers off when its control port closes. A run directory whose owner
// was killed is removed by the next Start.
//
// There is one lock, a semaphore for Exec; nothing is called while it is held but
// the agent.
package lab
