#!/bin/sh
# PID 1 of the network benchmark: iperf3 from the tools disk, against the host, both ways. The results go to the serial line.
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
exec </dev/null >/dev/ttyS0 2>&1
for m in virtio_pci virtio_blk virtio_net ext4; do modprobe $m 2>/dev/null; done
n=0
until [ -e /sys/class/net/eth0 ] && [ -b /dev/vda ]; do
	n=$((n + 1))
	[ $n -gt 100 ] && echo "BENCH failed: no devices" && break
	sleep 0.1
done
ip link set lo up
ip link set eth0 up
ip addr add 10.0.2.15/24 dev eth0
ip route add default via 10.0.2.2
mount -t ext4 -o ro /dev/vda /mnt
for d in lib lib64 usr/lib; do [ -e /mnt/$d ] && mkdir -p /$d && cp -a /mnt/$d/. /$d/; done
cp /mnt/bin/iperf3 /bin/
s=$(sed -n 's/.*bench.seconds=\([0-9]*\).*/\1/p' /proc/cmdline)
echo BENCH guest to host
iperf3 -f m -c 10.0.2.2 -p 5299 -t "${s:-3}"
echo BENCH host to guest
iperf3 -f m -c 10.0.2.2 -p 5299 -t "${s:-3}" -R
echo BENCH end
sleep 30
poweroff -f
