//! Everything a cell may import, with its types.

/// One function that the host offers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Import {
    pub(super) module: &'static str,
    pub(super) name: &'static str,
    /// Its parameters: `i` for an i32, `l` for an i64.
    pub(super) parameters: &'static str,
    /// Its result, in the same letters, or nothing.
    pub(super) result: &'static str,
    /// What it answers depends on the machine or on the time.
    pub(super) varies: bool,
}

const fn cell(name: &'static str, parameters: &'static str, result: &'static str) -> Import {
    Import { module: "cell_v1", name, parameters, result, varies: false }
}

const fn wasi(name: &'static str, parameters: &'static str) -> Import {
    Import { module: "wasi_snapshot_preview1", name, parameters, result: "i", varies: false }
}

const fn varying(import: Import) -> Import {
    Import { varies: true, ..import }
}

/// All of them.
#[rustfmt::skip]
pub(super) const IMPORTS: &[Import] = &[
    cell("call", "iiiiiiiil", "l"),
    cell("call_reply", "ii", "i"),
    varying(cell("context", "i", "")),
    cell("fuel_left", "", "l"),
    cell("kv_delete", "ii", "i"),
    cell("kv_get", "ii", "l"),
    cell("kv_set", "iiii", "i"),
    cell("kv_value", "ii", "i"),
    cell("log", "iii", ""),
    cell("reject", "iii", ""),
    wasi("args_get", "ii"),
    wasi("args_sizes_get", "ii"),
    wasi("environ_get", "ii"),
    wasi("environ_sizes_get", "ii"),
    varying(wasi("clock_res_get", "ii")),
    varying(wasi("clock_time_get", "ili")),
    wasi("fd_advise", "illi"),
    wasi("fd_allocate", "ill"),
    wasi("fd_close", "i"),
    wasi("fd_datasync", "i"),
    wasi("fd_fdstat_get", "ii"),
    wasi("fd_fdstat_set_flags", "ii"),
    wasi("fd_fdstat_set_rights", "ill"),
    varying(wasi("fd_filestat_get", "ii")),
    wasi("fd_filestat_set_size", "il"),
    wasi("fd_filestat_set_times", "illi"),
    wasi("fd_pread", "iiili"),
    wasi("fd_prestat_get", "ii"),
    wasi("fd_prestat_dir_name", "iii"),
    wasi("fd_pwrite", "iiili"),
    wasi("fd_read", "iiii"),
    wasi("fd_readdir", "iiili"),
    wasi("fd_renumber", "ii"),
    wasi("fd_seek", "ilii"),
    wasi("fd_sync", "i"),
    wasi("fd_tell", "ii"),
    wasi("fd_write", "iiii"),
    wasi("path_create_directory", "iii"),
    wasi("path_filestat_get", "iiiii"),
    wasi("path_filestat_set_times", "iiiilli"),
    wasi("path_link", "iiiiiii"),
    wasi("path_open", "iiiiillii"),
    wasi("path_readlink", "iiiiii"),
    wasi("path_remove_directory", "iii"),
    wasi("path_rename", "iiiiii"),
    wasi("path_symlink", "iiiii"),
    wasi("path_unlink_file", "iii"),
    varying(wasi("poll_oneoff", "iiii")),
    wasi("proc_raise", "i"),
    varying(wasi("random_get", "ii")),
    wasi("sched_yield", ""),
    wasi("sock_accept", "iii"),
    wasi("sock_recv", "iiiiii"),
    wasi("sock_send", "iiiii"),
    wasi("sock_shutdown", "ii"),
    Import { result: "", ..wasi("proc_exit", "i") },
];
