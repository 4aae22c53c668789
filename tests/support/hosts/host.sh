# The first process of a host: makes what is the host's own, says so, and reaps what others leave. $1: its name, $2: the cluster's folder.
set -eu
mount -t proc proc /proc
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t sysfs sysfs "$2/sys"  # a new one shows this host's network devices; the control groups come along
mountpoint -q /sys/fs/cgroup && mount --rbind /sys/fs/cgroup "$2/sys/fs/cgroup"
mount --move "$2/sys" /sys
own=$2/own  # the same path on every host, other files
mount -t tmpfs -o mode=700 own "$own"
mkdir "$own/tmp"
hostname "$1"
echo "$1" >"$own/hostname"
cat /proc/sys/kernel/random/uuid >"$own/boot_id"
tr -d - <"$own/boot_id" >"$own/machine-id"
cp "$2/hosts" "$own/hosts"
for file in /etc/hosts /etc/hostname /etc/machine-id /proc/sys/kernel/random/boot_id; do
  [ ! -e "$file" ] || mount --bind "$own/${file##*/}" "$file"
done
# BBR, where it is the default, paces what has no wire; a container may allow reno only.
for name in reno cubic; do
  echo "$name" 2>/dev/null >/proc/sys/net/ipv4/tcp_congestion_control || true
done
ip link set lo up
echo ready
exec </dev/null >/dev/null 2>&1
while :; do sleep 1000; done
