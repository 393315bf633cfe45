#!/bin/sh
# PID 1 of the guest, after the initramfs: mounts, groups, users, then the suites of /t/plan, and off.
# Every line that starts with @@ is for guest.py.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
mount -t proc -o nosuid,nodev,noexec none /proc
mount -t sysfs -o nosuid,nodev,noexec none /sys
mount -t devtmpfs none /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts none /dev/pts
mount -t tmpfs -o mode=1777 none /dev/shm
mount -t cgroup2 none /sys/fs/cgroup
hostname guest
/bin/busybox ip link set lo up
G=/sys/fs/cgroup

export ASSAY_TEST_PAYLOAD=/t/payload ASSAY_TEST_BOX=/t/assay-box ASSAY_TEST_EGRESS=/t/assay-egress
export ASSAY_TEST_TOOL=/t/box-tool ASSAY_LIBEXEC=/t ASSAY_BOX_MUST_WORK=1 ASSAY_TEST_SLOW=10

# A group like a service's with Delegate=yes: the user owns it, and the process is alone in it.
delegated() { # NAME UID
    mkdir -p $G/$1 && chown $2:$2 $G/$1 $G/$1/cgroup.procs $G/$1/cgroup.subtree_control $G/$1/cgroup.threads
}

# Enters a group ("-": stays; "fresh": a new delegated one, since a group that hands controllers down
# takes no process), then becomes uid $3 and runs the rest.
n=0
run() { # NAME GROUP UID COMMAND...
    name=$1 group=$2 uid=$3
    shift 3
    if [ "$group" = fresh ]; then
        n=$((n + 1)) group=service$n
        delegated $group 61234
    fi
    echo "@@ begin $name"
    (
        [ "$group" = - ] || sh -c "echo \$PPID > $G/$group/cgroup.procs"
        exec setpriv --reuid="$uid" --regid="$uid" --clear-groups "$@"
    ) < /dev/null 2>&1
    echo "@@ end $name $?"
}

echo "+memory +pids +cpu" > $G/cgroup.subtree_control
mkdir $G/scope $G/closed
mkdir $G/slice && chown 61234:61234 $G/slice $G/slice/cgroup.procs
echo "+memory +pids +cpu" > $G/slice/cgroup.subtree_control
mkdir $G/slice/session
sleep 100000 &
echo $! > $G/scope/cgroup.procs
sleep 100000 &
echo $! > $G/slice/session/cgroup.procs
echo "@@ kernel $(uname -r)"
. /t/plan
find $G -name 'assay-box-*-s[0-9]*' # by name, for whoever looks for who left them
echo "@@ leftovers $(find $G -name 'assay-box-*-s[0-9]*' | wc -l)"
sync
echo o > /proc/sysrq-trigger
sleep 100
