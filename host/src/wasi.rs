//! WASI preview 1, each function charged before wasmtime-wasi does its work.
//!
//! A cell gets the same functions as a job; without directories and sockets behind them, most
//! answer `badf`.

use wasmtime::{Caller, Extern, Linker, Memory};
use wasmtime_wasi::p1::wasi_snapshot_preview1 as preview1;
use wasmtime_wasi::p1::wasi_snapshot_preview1::WasiSnapshotPreview1 as _;
use wiggle::GuestMemory;

use crate::error::Stop;
use crate::gate::offered::{I32, I64, Offered};
use crate::guest::Guest;
use crate::meter::{charge, wait};
use crate::price::{BYTE, HOST_CALL, RANDOM_BYTE, SYSTEM_CALL};
use crate::tape::WasiCall;

pub(crate) const MODULE: &str = "wasi_snapshot_preview1";

cell_abi::limits! {
    /// Buffers of one vectored read or write that are looked at for its price: POSIX's IOV_MAX.
    ///
    /// Those behind cost what a buffer costs; wasmtime-wasi does not serve them in the same call.
    pub(crate) const VECTORS_MAX: usize = 1024;
}

/// One line per function: its arguments, and what it costs besides leaving the guest. All of them
/// return an errno but `proc_exit`, which does not return.
macro_rules! functions {
    ($bytes:ident:
        $($name:ident ( $($arg:ident : $ty:ident),* ) $($await:ident)? = $price:expr;)*
    ) => {
        /// Every preview 1 function: what the gate lets a module import.
        pub(crate) const FUNCTIONS: &[Offered] = &[
            $(Offered::new(stringify!($name), &[$(functions!(@type $ty)),*], &[I32]),)*
            Offered::new("proc_exit", &[I32], &[]),
        ];

        fn add_priced(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
            $(linker.func_wrap_async(
                MODULE,
                stringify!($name),
                |mut caller: Caller<'_, Guest>, ($($arg,)*): ($($ty,)*)| Box::new(async move {
                    let memory = memory(&mut caller)?;
                    let price = {
                        let $bytes = memory.data(&caller);
                        let _ = $bytes;
                        HOST_CALL.saturating_add($price)
                    };
                    charge(&mut caller, price).await?;
                    let (bytes, guest) = memory.data_and_store_mut(&mut caller);
                    let tape = guest.call.tape.clone();
                    let wasi_call =
                        WasiCall { name: stringify!($name), arguments: &[$(i64::from($arg)),*] };
                    if let Some(tape) = &tape
                        && let Some(errno) = wasi_call.play(tape, bytes)?
                    {
                        return Ok(errno);
                    }
                    let gauge = std::sync::Arc::clone(&guest.gauge);
                    let host_call_bytes_max = guest.limits.host_call_bytes_max;
                    let wasi = guest.wasi();
                    wasi.set_hostcall_fuel(host_call_bytes_max);
                    let answer = {
                        let mut bytes = GuestMemory::Unshared(&mut *bytes);
                        functions!(@call $($await)? gauge, preview1::$name(wasi, &mut bytes, $($arg),*))
                    };
                    if let Some(tape) = &tape {
                        wasi_call.record(tape, bytes, &answer);
                    }
                    answer
                }),
            )?;)*
            Ok(())
        }
    };
    (@type i32) => { I32 };
    (@type i64) => { I64 };
    (@call wait $gauge:ident, $call:expr) => { wait(&$gauge, $call).await };
    (@call $gauge:ident, $call:expr) => {{ let _ = $gauge; $call }};
}

functions! { bytes:
    args_get(a: i32, b: i32) = SYSTEM_CALL;
    args_sizes_get(a: i32, b: i32) = 0;
    environ_get(a: i32, b: i32) = SYSTEM_CALL;
    environ_sizes_get(a: i32, b: i32) = 0;
    clock_res_get(a: i32, b: i32) = 0;
    clock_time_get(a: i32, b: i64, c: i32) = HOST_CALL;
    fd_advise(a: i32, b: i64, c: i64, d: i32) wait = SYSTEM_CALL;
    fd_allocate(a: i32, b: i64, c: i64) = 0;
    fd_close(a: i32) wait = SYSTEM_CALL;
    fd_datasync(a: i32) wait = SYSTEM_CALL * 100;
    fd_fdstat_get(a: i32, b: i32) wait = SYSTEM_CALL;
    fd_fdstat_set_flags(a: i32, b: i32) = 0;
    fd_fdstat_set_rights(a: i32, b: i64, c: i64) = 0;
    fd_filestat_get(a: i32, b: i32) wait = SYSTEM_CALL;
    fd_filestat_set_size(a: i32, b: i64) wait = SYSTEM_CALL;
    fd_filestat_set_times(a: i32, b: i64, c: i64, d: i32) wait = SYSTEM_CALL;
    fd_pread(a: i32, iovs: i32, count: i32, d: i64, e: i32) wait = vectors(bytes, iovs, count);
    fd_prestat_get(a: i32, b: i32) = 0;
    fd_prestat_dir_name(a: i32, b: i32, c: i32) = length(c);
    fd_pwrite(a: i32, iovs: i32, count: i32, d: i64, e: i32) wait = vectors(bytes, iovs, count);
    fd_read(a: i32, iovs: i32, count: i32, d: i32) wait = vectors(bytes, iovs, count);
    fd_readdir(a: i32, b: i32, len: i32, d: i64, e: i32) wait = SYSTEM_CALL + length(len);
    fd_renumber(a: i32, b: i32) wait = SYSTEM_CALL;
    fd_seek(a: i32, b: i64, c: i32, d: i32) wait = SYSTEM_CALL;
    fd_sync(a: i32) wait = SYSTEM_CALL * 100;
    fd_tell(a: i32, b: i32) = 0;
    fd_write(a: i32, iovs: i32, count: i32, d: i32) wait = vectors(bytes, iovs, count);
    path_create_directory(a: i32, b: i32, len: i32) wait = path(len);
    path_filestat_get(a: i32, b: i32, c: i32, len: i32, e: i32) wait = path(len);
    path_filestat_set_times(a: i32, b: i32, c: i32, len: i32, e: i64, f: i64, g: i32) wait = path(len);
    path_link(a: i32, b: i32, c: i32, len: i32, e: i32, f: i32, len2: i32) wait = path(len) + path(len2);
    path_open(a: i32, b: i32, c: i32, len: i32, e: i32, f: i64, g: i64, h: i32, i: i32) wait = path(len);
    path_readlink(a: i32, b: i32, len: i32, d: i32, len2: i32, f: i32) wait = path(len) + length(len2);
    path_remove_directory(a: i32, b: i32, len: i32) wait = path(len);
    path_rename(a: i32, b: i32, len: i32, d: i32, e: i32, len2: i32) wait = path(len) + path(len2);
    path_symlink(a: i32, len: i32, c: i32, d: i32, len2: i32) wait = path(len) + path(len2);
    path_unlink_file(a: i32, b: i32, len: i32) wait = path(len);
    poll_oneoff(a: i32, b: i32, count: i32, d: i32) wait = length(count).saturating_mul(SYSTEM_CALL);
    proc_raise(a: i32) = 0;
    random_get(a: i32, len: i32) = length(len).saturating_mul(RANDOM_BYTE) + HOST_CALL;
    sched_yield() = 0;
    sock_accept(a: i32, b: i32, c: i32) = 0;
    sock_recv(a: i32, b: i32, c: i32, d: i32, e: i32, f: i32) = 0;
    sock_send(a: i32, b: i32, c: i32, d: i32, e: i32) = 0;
    sock_shutdown(a: i32, b: i32) = 0;
}

pub(crate) fn add_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    add_priced(linker)?;
    // wasmtime-wasi refuses codes of 126 and more; a program may exit with any.
    linker.func_wrap(MODULE, "proc_exit", |code: i32| -> wasmtime::Result<()> {
        Err(Stop::Exited(code.cast_unsigned()).into())
    })?;
    Ok(())
}

/// The one linear memory of the caller.
pub(crate) fn memory(caller: &mut Caller<'_, Guest>) -> wasmtime::Result<Memory> {
    match caller.get_export("memory") {
        Some(Extern::Memory(memory)) => Ok(memory),
        _ => Err(wasmtime::Error::msg("the module exports no memory")),
    }
}

fn length(len: i32) -> u64 {
    u64::from(len.cast_unsigned()) * BYTE
}

fn path(len: i32) -> u64 {
    SYSTEM_CALL + length(len)
}

/// A vectored read or write: wasmtime-wasi serves the first buffer that is not empty.
fn vectors(memory: &[u8], iovs: i32, count: i32) -> u64 {
    let vectors = SYSTEM_CALL + 8 * length(count);
    let number = |value: i32| usize::try_from(value.cast_unsigned()).unwrap_or(usize::MAX);
    let first = first_vector(memory, number(iovs), number(count)).map_or(0, |(_, len)| len as u64);
    // A length past the memory's end is refused by wasmtime-wasi, so it costs no more than all of it.
    let bytes = first.min(memory.len() as u64);
    vectors.saturating_add(bytes * BYTE)
}

/// The first of these buffers that is not empty: the one that wasmtime-wasi serves.
pub(crate) fn first_vector(memory: &[u8], at: usize, count: usize) -> Option<(usize, usize)> {
    let number = |bytes: &[u8]| {
        let bytes = bytes.first_chunk::<4>()?;
        usize::try_from(u32::from_le_bytes(*bytes)).ok()
    };
    memory
        .get(at..)?
        .chunks_exact(8)
        .take(count.min(VECTORS_MAX))
        .filter_map(|vector| Some((number(vector)?, number(vector.get(4..)?)?)))
        .find(|(_, len)| *len > 0)
}
