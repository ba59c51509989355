// Package bare builds and describes the bare guest: a freestanding program
// that a VMM boots in place of a kernel, and that drives virtio-mmio devices at
// native speed on every KVM, also where ordinary kernels cannot run.
//
// The guest is guest/*.S and guest/*.c, built with gcc into one ELF with a PVH
// entry. A few instructions of ring 0 bring it into ring 3, where everything
// else runs. It is what the tests of the machine, the transports and the
// migration run against, and what side-by-side benchmarks measure; QEMU's microvm
// boots the same file with the same command line.
//
// # What it says
//
// The very first instruction that has an effect writes 'B' to COM1: the entry
// stamp. Then lines of text; the line that is a JSON object is the Result
// and the last word. It ends the machine by ACPI S5 (docs/machine-v1.md), where that does
// nothing by QEMU's isa-debug-exit at port 0xf4 (0 well, 1 not), and else by the
// reset register 0xCF9.
//
// # What it is told
//
// The command line has bare.test=NAME and the keys below, in any order, numbers
// with K, M or G at will. Devices come as Linux has them:
// virtio_mmio.device=SIZE@ADDR:GSI, once for each.
//
//	tsc_khz=N      rate of the time stamp counter; by default measured, to 0.1 %
//
//	hello          says tsc_khz, devices, ram_end
//	blk            op=randread|randwrite|randrw|seqread|seqwrite depth=1 size=4096
//	               seconds=1 ops=0 (0: only the time ends it) verify=0 flush_every=0
//	               pieces=1 (data segments of a request) wait=poll|irq event_idx=1
//	               indirect=1 ring=256 span=(all) disk=0 seed=1
//	               cpus=1 (each drives a queue) disks=1 (or, if equal to cpus, a disk each)
//	blk-soak       seconds=2 span=64M disk=0 seed=1: mixed sizes, segments, features,
//	               ring sizes, polling and interrupts, resets in the middle, all verified
//	blk-flushlog   depth=8 size=4096 span=16M ops=(no end): batches of depth writes of
//	               generation n, a flush, then the line "F n"
//	hostile        case=all disk=0: breaks the rules in 39 ways; a line
//	               "H case answered|needs-reset|silent status alive|dead disturbed|undisturbed" each
//	net            op=echo|send|receive frames=1000 size=60 depth=64 seconds=10 wait=poll|irq;
//	               says "net ready" first. Frames have the type 0x88B5 and a number
//	console        op=bulk|echo bytes=1M; says "console ready" first. Byte i of bulk is i*31>>3
//	rng            bytes=64K
//	timer          ops=1000 delay_ns=100000 wait=poll|irq: how late the local APIC's timer is
//	cpus           cpus=2 ms=50: starts them by INIT and SIPI
//	dirty          mib=64 seconds=1 passes=(no end) high=0 every=0: rewrites a word in each
//	               page and checks it, pass after pass; high: RAM above 4 GiB; "D n" lines
package bare
