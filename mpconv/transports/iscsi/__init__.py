"""LUNs of iSCSI targets, by libiscsi, in user space."""
