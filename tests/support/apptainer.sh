#!/bin/sh
# Runs a program as user 1000 on the root file system ROOT, in which the folder SHARED is where this machine has it.
# Started as the first process of new mount and process namespaces. Apptainer refuses a chroot, hence pivot_root.
#
#   apptainer.sh ROOT SHARED PROGRAM...
set -eu
root=$1 shared=$2
shift 2

mount --make-rprivate /
mkdir "$shared/upper" "$shared/work" "$shared/rootfs"
here=$shared/rootfs
mount -t overlay -o "lowerdir=$root,upperdir=$shared/upper,workdir=$shared/work" overlay "$here"
mount -t proc proc "$here/proc"
mount --rbind /sys "$here/sys"
mount --rbind /dev "$here/dev"
mount -t tmpfs tmpfs "$here/tmp"
mkdir -p "$here/tmp/old" "$here$shared"
mount --bind "$shared" "$here$shared"
echo '127.0.0.1 localhost' >"$here/etc/hosts"
echo 'lab:x:1000:1000::/tmp:/bin/sh' >>"$here/etc/passwd"
echo 'lab:x:1000:' >>"$here/etc/group"

cd "$here"
pivot_root . tmp/old
umount -l /tmp/old
exec setpriv --reuid 1000 --regid 1000 --clear-groups env -i PATH=/usr/bin:/bin HOME=/tmp "$@"
