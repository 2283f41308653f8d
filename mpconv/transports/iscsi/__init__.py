"""LUNs of iSCSI targets, by libiscsi, in user space. It needs no initiator of the kernel."""
