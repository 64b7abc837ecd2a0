#!/bin/sh
# Runs an engine, and a registry at 127.0.0.1:5000, on the root file system ROOT, which stays as it is. The engine's own
# files are in HOME, and the folders FOLDERS (joined by colons) are where this machine has them. Started as the first
# process of new network, mount and process namespaces: when it ends, so does everything in them.
#
#   newer_engine.sh ROOT HOME FOLDERS PROGRAM...
#
# It ends when nobody holds a lock on HOME/users any more.
set -eu
root=$1 home=$2 folders=$3
shift 3
here=$home/rootfs

mkdir "$home/upper" "$home/work" "$here"
mount -t overlay -o "lowerdir=$root,upperdir=$home/upper,workdir=$home/work" overlay "$here"
mount -t proc proc "$here/proc"
mount --rbind /sys "$here/sys"
mount --rbind /dev "$here/dev"
mount -t tmpfs tmpfs "$here/run"
IFS=:
for folder in $folders; do
    mkdir -p "$here$folder"
    mount --bind "$folder" "$here$folder"
done
unset IFS

# Its number outside, by which others enter.
read -r pid _ </proc/self/stat
echo "$pid" >"$home/pid"

chroot "$here" ip link set lo up
chroot "$here" docker-registry serve "$home/registry.yml" >"$home/registry.log" 2>&1 &
until chroot "$here" bash -c '</dev/tcp/127.0.0.1/5000' 2>/dev/null; do sleep 0.1; done
chroot "$here" "$@" >"$home/engine.log" 2>&1 &
flock --exclusive "$home/users" rm "$home/users"
