"""The lab: boot real Debian kernels under QEMU, bring them into a chosen state, and dump their cores."""
