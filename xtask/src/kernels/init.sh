#!/bin/busybox sh
# The first and only program of a guest: loads the modules, runs the tests, powers off.
# What it says goes to the second serial port, with marks that begin with @@; the kernel has the first for itself.
/bin/busybox mount -t proc proc /proc
/bin/busybox --install -s /bin
export PATH=/usr/bin:/bin HOME=/tmp
mount -t devtmpfs dev /dev
exec >/dev/ttyS1 2>&1 </dev/null
stty -F /dev/ttyS1 raw
mount -t sysfs sys /sys
mount -t tracefs trace /sys/kernel/tracing
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup /sys/fs/cgroup
mount -t tmpfs tmp /tmp
mount -t tmpfs run /run
mkdir /run/netns
ip link set lo up
while read module; do
    insmod "/modules/$module" || echo "@@ refused $module"
done </modules/order
echo "@@ ready $(uname -r)"

echo "@@ preflight"
/netdiag-node preflight --output json
echo "@@ exit $?"

# A limit for each, so that one that hangs does not take the others' time.
run() {
    echo "@@ run $1"
    NETDIAG_PATIENCE=10 NETDIAG_ALONE=1 timeout -s KILL 480 "$2" --test-threads=1 --show-output $3
    local exit=$?
    echo "@@ exit $exit"
    return $exit
}

# What fails runs once more: an emulated processor may stand still for as long as its host likes.
while read name program arguments; do
    run "$name" "$program" "$arguments" || run "$name" "$program" "$arguments"
done </tests

echo "@@ end"
poweroff -f
