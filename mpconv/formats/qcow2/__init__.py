"""qcow2, versions 2 and 3: QEMU's docs/interop/qcow2 is the format's document."""
