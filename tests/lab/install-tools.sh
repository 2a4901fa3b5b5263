#!/bin/sh
# Install the missing tools of the lab and of the tests of the HTML report and the alerts on Debian. Run as root.
set -eu

missing=
for tool in qemu-system-x86_64:qemu-system-x86 qemu-system-aarch64:qemu-system-arm \
    qemu-system-ppc64:qemu-system-ppc qemu-system-s390x:qemu-system-misc crash:crash mke2fs:e2fsprogs \
    cpio:cpio xz:xz-utils dpkg-deb:dpkg debootstrap:debootstrap mkfs.xfs:xfsprogs kexec:kexec-tools \
    makedumpfile:makedumpfile ssh:openssh-client chromium:chromium /usr/sbin/sshd:openssh-server sudo:sudo \
    valgrind:valgrind ip:iproute2 fusermount3:fuse3; do
    command -v "${tool%%:*}" >/dev/null || missing="$missing ${tool#*:}"
done
dpkg -s busybox-static >/dev/null 2>&1 || missing="$missing busybox-static"

if [ -n "$missing" ]; then
    echo "lab: installing$missing" >&2
    apt-get update -qq
    # shellcheck disable=SC2086 # a list of words
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $missing >/dev/null
fi

# Only promtool, because the package prometheus starts a server.
if ! command -v promtool >/dev/null; then
    echo "lab: fetching promtool" >&2
    folder=$(mktemp -d)
    chmod 755 "$folder"
    (
        cd "$folder"
        apt-get update -qq
        apt-get download -qq -o APT::Sandbox::User=root prometheus
        dpkg-deb --fsys-tarfile prometheus_*.deb | tar --extract --to-stdout ./usr/bin/promtool >promtool
        install promtool /usr/local/bin/promtool
    )
    rm -r "$folder"
fi
