"""The lab: boots real Debian kernels under QEMU, brings them into a chosen state, and takes their cores."""
