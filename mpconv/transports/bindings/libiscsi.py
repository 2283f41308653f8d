"""libiscsi: contexts, login, and SCSI commands whose bytes we build ourselves.

Of struct scsi_task only the beginning is declared, which is the same since 1.12; `library` checks it against a command
whose bytes are known before anything relies on it.
"""

from __future__ import annotations

import functools
from typing import Any

import cffi

from mpconv.errors import Fatal
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
int iscsi_set_isid_random(struct iscsi_context *, uint32_t, uint32_t);
int iscsi_set_targetname(struct iscsi_context *, const char *);
int iscsi_set_session_type(struct iscsi_context *, int);
int iscsi_set_header_digest(struct iscsi_context *, int);
int iscsi_set_initiator_username_pwd(struct iscsi_context *, const char *, const char *);
int iscsi_set_target_username_pwd(struct iscsi_context *, const char *, const char *);
void iscsi_set_noautoreconnect(struct iscsi_context *, int);
int iscsi_set_timeout(struct iscsi_context *, int);
void iscsi_set_tcp_syncnt(struct iscsi_context *, int);
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
UNDERFLOW = 1


_NAMES = [*(f"libiscsi.so.{number}" for number in (7, 8, 9, 10, 11)), "libiscsi.so"]


@functools.cache
def library() -> Any:
    """libiscsi, of whatever version is installed. Fatal when there is none, or one whose tasks look different."""
    loaded = load(ffi, _NAMES, "libiscsi", "libiscsi7")
    if not _layout_fits(loaded):
        raise Fatal("this version of libiscsi is not known to mpconv: install libiscsi 1.18 to 1.20")
    return loaded


def _layout_fits(loaded: Any) -> bool:
    """Whether the declared fields of a task read back what it was made from."""
    cdb, length = bytes(range(1, 17)), 0x123456
    task = loaded.scsi_create_task(len(cdb), cdb, 1, length)
    if task == ffi.NULL:
        return False
    fits = bool(task.cdb_size == len(cdb) and task.expxferlen == length and bytes(ffi.buffer(task.cdb)) == cdb)
    loaded.scsi_free_scsi_task(task)
    return fits
