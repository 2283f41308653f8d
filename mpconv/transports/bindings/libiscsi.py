"""libiscsi: contexts, login, and SCSI commands whose bytes we build ourselves.

Of struct scsi_task only the beginning is declared, which is the same since 1.12; `layout_fits` checks it against a
command whose bytes are known before anything relies on it.
"""

from __future__ import annotations

from typing import Any

import cffi

from mpconv.transports.bindings import load

ffi = cffi.FFI()
ffi.cdef("""
struct iscsi_context;
struct scsi_task {
    int status; int cdb_size; int xfer_dir; int expxferlen; unsigned char cdb[16];
    int residual_status; size_t residual; };
struct scsi_sense { unsigned char error_type; int key; int ascq; unsigned char rest[16]; };
typedef void (*iscsi_command_cb)(struct iscsi_context *, int, void *, void *);
struct iscsi_context *iscsi_create_context(const char *);
int iscsi_destroy_context(struct iscsi_context *);
int iscsi_set_targetname(struct iscsi_context *, const char *);
int iscsi_set_session_type(struct iscsi_context *, int);
int iscsi_set_header_digest(struct iscsi_context *, int);
int iscsi_set_initiator_username_pwd(struct iscsi_context *, const char *, const char *);
int iscsi_set_target_username_pwd(struct iscsi_context *, const char *, const char *);
void iscsi_set_noautoreconnect(struct iscsi_context *, int);
int iscsi_set_timeout(struct iscsi_context *, int);
int iscsi_full_connect_sync(struct iscsi_context *, const char *, int);
int iscsi_logout_sync(struct iscsi_context *);
int iscsi_disconnect(struct iscsi_context *);
const char *iscsi_get_error(struct iscsi_context *);
int iscsi_get_fd(struct iscsi_context *);
int iscsi_which_events(struct iscsi_context *);
int iscsi_service(struct iscsi_context *, int);
int iscsi_scsi_command_async(struct iscsi_context *, int, struct scsi_task *, iscsi_command_cb, void *, void *);
struct scsi_task *scsi_create_task(int, unsigned char *, int, int);
int scsi_task_add_data_in_buffer(struct scsi_task *, int, unsigned char *);
int scsi_task_add_data_out_buffer(struct scsi_task *, int, unsigned char *);
int scsi_task_get_status(struct scsi_task *, struct scsi_sense *);
void scsi_free_scsi_task(struct scsi_task *);
""")

NORMAL_SESSION = 2
NO_DIGEST = 0


def library() -> Any:
    """libiscsi, of whatever version is installed."""
    names = [f"libiscsi.so.{number}" for number in (7, 8, 9, 10, 11)] + ["libiscsi.so"]
    return load(ffi, names, "libiscsi", "libiscsi7")


def layout_fits(task: Any, cdb: bytes, expected: int) -> bool:
    """Whether the declared fields of a task read back what it was made from."""
    return task.cdb_size == len(cdb) and task.expxferlen == expected and bytes(ffi.buffer(task.cdb, len(cdb))) == cdb
