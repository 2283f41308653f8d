"""qcow2, versions 2 and 3, read and written. QEMU's docs/interop/qcow2 is the format's document.

It holds tables and says where clusters go. Workers write the guest's bytes.
"""
