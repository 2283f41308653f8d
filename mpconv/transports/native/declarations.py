"""What we use of libnfs and libiscsi, in C; `python -m mpconv.transports.native.declarations` compiles it.

_libnfs.py and _libiscsi.py are made from this text, so that no process has to parse C when it starts: that took
25 ms in each. No compiler is needed, here or on the user's machine.
"""

from __future__ import annotations

from pathlib import Path

# The structures of RPC calls are those of RFC 1813, as libnfs's generator has laid them out since version 1.
LIBNFS = """
struct nfs_context; struct nfsfh;
struct nfs_fh { int len; char *val; };
struct nfs_url { char *server; char *path; char *file; };
struct nfs_stat_64 {
    uint64_t nfs_dev; uint64_t nfs_ino; uint64_t nfs_mode; uint64_t nfs_nlink; uint64_t nfs_uid;
    uint64_t nfs_gid; uint64_t nfs_rdev; uint64_t nfs_size; uint64_t nfs_blksize; uint64_t nfs_blocks;
    uint64_t nfs_atime; uint64_t nfs_mtime; uint64_t nfs_ctime; uint64_t nfs_atime_nsec;
    uint64_t nfs_mtime_nsec; uint64_t nfs_ctime_nsec; uint64_t nfs_used; };
struct nfs_statvfs_64 {
    uint64_t f_bsize; uint64_t f_frsize; uint64_t f_blocks; uint64_t f_bfree; uint64_t f_bavail; uint64_t f_files;
    uint64_t f_ffree; uint64_t f_favail; uint64_t f_fsid; uint64_t f_flag; uint64_t f_namemax; };
typedef void (*nfs_cb)(int, struct nfs_context *, void *, void *);
struct nfs_context *nfs_init_context(void);
void nfs_destroy_context(struct nfs_context *);
struct nfs_url *nfs_parse_url_full(struct nfs_context *, const char *);
void nfs_destroy_url(struct nfs_url *);
char *nfs_get_error(struct nfs_context *);
void nfs_set_autoreconnect(struct nfs_context *, int);
void nfs_set_timeout(struct nfs_context *, int);
uint16_t nfs_umask(struct nfs_context *, uint16_t);
void nfs4_set_client_name(struct nfs_context *, const char *);
int nfs_mount(struct nfs_context *, const char *, const char *);
int nfs_access(struct nfs_context *, const char *, int);
int nfs_statvfs64(struct nfs_context *, const char *, struct nfs_statvfs_64 *);
int nfs_open(struct nfs_context *, const char *, int, struct nfsfh **);
int nfs_create(struct nfs_context *, const char *, int, int, struct nfsfh **);
int nfs_creat(struct nfs_context *, const char *, int, struct nfsfh **);
int nfs_lstat64(struct nfs_context *, const char *, struct nfs_stat_64 *);
int nfs_unlink(struct nfs_context *, const char *);
int nfs_close(struct nfs_context *, struct nfsfh *);
int nfs_ftruncate(struct nfs_context *, struct nfsfh *, uint64_t);
int nfs_fstat64(struct nfs_context *, struct nfsfh *, struct nfs_stat_64 *);
uint64_t nfs_get_readmax(struct nfs_context *);
uint64_t nfs_get_writemax(struct nfs_context *);
int nfs_get_fd(struct nfs_context *);
struct nfs_fh *nfs_get_fh(struct nfsfh *);
int nfs_which_events(struct nfs_context *);
int nfs_service(struct nfs_context *, int);
int nfs_fstat64_async(struct nfs_context *, struct nfsfh *, nfs_cb, void *);
int nfs_fsync_async(struct nfs_context *, struct nfsfh *, nfs_cb, void *);
int nfs_set_retrans(struct nfs_context *, int);
void nfs_set_readmax(struct nfs_context *, size_t);
int nfs_pread_async(struct nfs_context *, struct nfsfh *, uint64_t, uint64_t, nfs_cb, void *);
int nfs_pwrite_async(struct nfs_context *, struct nfsfh *, uint64_t, uint64_t, const void *, nfs_cb, void *);
struct rpc_context;
typedef void (*rpc_cb)(struct rpc_context *, int, void *, void *);
struct nfs3_opaque { uint32_t len; const char *val; };
struct nfs3_time { uint32_t seconds; uint32_t nanoseconds; };
struct nfs3_before { uint32_t follows; struct {
    uint64_t size; struct nfs3_time mtime; struct nfs3_time ctime; } attributes; };
struct nfs3_after { uint32_t follows; struct {
    int type; uint32_t mode; uint32_t nlink; uint32_t uid; uint32_t gid; uint64_t size; uint64_t used; uint32_t rdev[2];
    uint64_t fsid; uint64_t fileid; struct nfs3_time atime; struct nfs3_time mtime; struct nfs3_time ctime;
    } attributes; };
struct WRITE3args {
    struct nfs3_opaque file; uint64_t offset; uint32_t count; int stable; struct nfs3_opaque data; };
struct WRITE3res {
    int status; struct { struct nfs3_before before; struct nfs3_after after;
    uint32_t count; int committed; char verifier[8]; } ok; };
struct COMMIT3args { struct nfs3_opaque file; uint64_t offset; uint32_t count; };
struct COMMIT3res {
    int status; struct { struct nfs3_before before; struct nfs3_after after; char verifier[8]; } ok; };
struct rpc_context *nfs_get_rpc_context(struct nfs_context *);
int rpc_nfs3_write_async(struct rpc_context *, rpc_cb, struct WRITE3args *, void *);
int rpc_nfs3_commit_async(struct rpc_context *, rpc_cb, struct COMMIT3args *, void *);
void *rpc_nfs3_write_task(struct rpc_context *, rpc_cb, struct WRITE3args *, void *);
void *rpc_nfs3_commit_task(struct rpc_context *, rpc_cb, struct COMMIT3args *, void *);
"""

# Of struct scsi_task only the beginning is declared, which is the same since libiscsi 1.12.
LIBISCSI = """
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
int iscsi_connect_sync(struct iscsi_context *, const char *);
int iscsi_login_sync(struct iscsi_context *);
const char *iscsi_get_target_address(struct iscsi_context *);
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
"""

MODULES = {"_libnfs": LIBNFS, "_libiscsi": LIBISCSI}


def emit(folder: Path) -> None:
    """Write the modules into `folder`."""
    from cffi import FFI  # noqa: PLC0415  (importing it is what the modules spare everybody else)

    for name, text in MODULES.items():
        ffi = FFI()
        ffi.cdef(text)
        ffi.set_source(f"mpconv.transports.native.{name}", None)
        ffi.emit_python_code(str(folder / f"{name}.py"))


if __name__ == "__main__":
    emit(Path(__file__).parent)
