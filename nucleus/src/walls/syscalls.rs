//! The seccomp filters: what each process may ask of the kernel, and why. All else is refused with
//! `EPERM`.

use std::collections::BTreeMap;

use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch, apply_filter,
};

use super::Role;

/// Memory, threads, time and signals: no program of ours runs without them.
const ALWAYS: &[(c_long, &str)] = &[
    (libc::SYS_brk, "the allocator's heap"),
    (libc::SYS_mmap, "memory of guests, stacks and the allocator"),
    (libc::SYS_munmap, "giving it back"),
    (libc::SYS_mremap, "growing large vectors in place"),
    (libc::SYS_mprotect, "making code executable and guests' pages usable"),
    (libc::SYS_madvise, "forgetting the pages of a guest that ended"),
    (libc::SYS_memfd_create, "the image that a module's memories start from"),
    (libc::SYS_ftruncate, "the size of that image"),
    (libc::SYS_read, "descriptors it holds"),
    (libc::SYS_write, "descriptors it holds"),
    (libc::SYS_readv, "descriptors it holds"),
    (libc::SYS_writev, "descriptors it holds"),
    (libc::SYS_close, "descriptors it holds"),
    (libc::SYS_fstat, "the size of a file it was handed"),
    (libc::SYS_statx, "the same, as the standard library asks"),
    (libc::SYS_newfstatat, "the same, as the C library asks"),
    (libc::SYS_lseek, "the place in a file it was handed"),
    (libc::SYS_futex, "locks"),
    (libc::SYS_set_robust_list, "the start of a thread"),
    (libc::SYS_rseq, "the start of a thread"),
    (libc::SYS_clone3, "refused with ENOSYS by a filter before this one, so that clone is asked"),
    (libc::SYS_membarrier, "code that was just made is seen by all cores"),
    (libc::SYS_sched_yield, "locks that spin"),
    (libc::SYS_sched_getaffinity, "how many cores there are"),
    (libc::SYS_gettid, "the thread that panics names itself"),
    (libc::SYS_getpid, "abort"),
    (libc::SYS_rt_sigaction, "a trap of a guest is a signal"),
    (libc::SYS_rt_sigprocmask, "the same"),
    (libc::SYS_rt_sigreturn, "the same"),
    (libc::SYS_sigaltstack, "the same, on a stack that is not the guest's"),
    (libc::SYS_clock_gettime, "where the kernel does not map its clock"),
    (libc::SYS_clock_getres, "a guest may ask for it"),
    (libc::SYS_clock_nanosleep, "waiting"),
    (libc::SYS_nanosleep, "waiting"),
    (libc::SYS_restart_syscall, "waiting, after a signal"),
    (libc::SYS_getrandom, "hash maps, and guests' random numbers"),
    (libc::SYS_exit, "the end of a thread"),
    (libc::SYS_exit_group, "the end of the process"),
];

/// Sockets that were handed over, and what waits for them.
const SOCKETS: &[(c_long, &str)] = &[
    (libc::SYS_recvfrom, "frames"),
    (libc::SYS_recvmsg, "the link, with the descriptors it brings"),
    (libc::SYS_sendto, "frames"),
    (libc::SYS_sendmsg, "the link"),
    (libc::SYS_accept4, "clients of a listening socket it was handed"),
    (libc::SYS_getsockopt, "who a client is"),
    (libc::SYS_shutdown, "hanging up"),
    (libc::SYS_epoll_create1, "waiting for sockets"),
    (libc::SYS_epoll_ctl, "waiting for sockets"),
    (libc::SYS_epoll_pwait, "waiting for sockets"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_epoll_wait, "waiting for sockets"),
    (libc::SYS_timerfd_create, "waking a loop when a call's time is over"),
    (libc::SYS_timerfd_settime, "waking a loop when a call's time is over"),
    (libc::SYS_eventfd2, "waking a thread that waits"),
    (libc::SYS_fcntl, "second handles to a descriptor, and its modes"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_poll, "a job's standard input"),
    (libc::SYS_ppoll, "a job's standard input"),
];

/// Files beneath the directories that a job was given; landlock says which.
const FILES: &[(c_long, &str)] = &[
    (libc::SYS_openat, "a file of the job"),
    (libc::SYS_openat2, "the same, and never outside"),
    (libc::SYS_readlinkat, "a link on the way to it"),
    (libc::SYS_getdents64, "what is in a directory"),
    (libc::SYS_mkdirat, "a directory of the job"),
    (libc::SYS_unlinkat, "removing what it made"),
    (libc::SYS_renameat, "renaming"),
    (libc::SYS_renameat2, "renaming"),
    (libc::SYS_linkat, "links"),
    (libc::SYS_symlinkat, "links"),
    (libc::SYS_utimensat, "times of files"),
    (libc::SYS_fsync, "durable files"),
    (libc::SYS_fdatasync, "durable files"),
    (libc::SYS_fallocate, "the size of files"),
    (libc::SYS_fadvise64, "how a file will be read"),
    (libc::SYS_pread64, "parts of files"),
    (libc::SYS_pwrite64, "parts of files"),
    (libc::SYS_preadv, "parts of files"),
    (libc::SYS_pwritev, "parts of files"),
];

/// Refuses everything that the role does not need, for this thread and those it starts.
pub(super) fn restrict(role: &Role) -> Result<String, String> {
    let (allow, count) = allow_list(role).map_err(|e| e.to_string())?;
    let clone3 = clone3_is_missing().map_err(|e| e.to_string())?;
    apply_filter(&clone3).and_then(|()| apply_filter(&allow)).map_err(|e| e.to_string())?;
    Ok(format!("{count} system calls, all others EPERM"))
}

/// The filter of a role, and how many system calls it lets through.
fn allow_list(role: &Role) -> Result<(BpfProgram, usize), seccompiler::BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    let tables: &[&[(c_long, &str)]] = match role {
        Role::Worker | Role::Gateway => &[ALWAYS, SOCKETS],
        Role::Job(directories) if directories.is_empty() => &[ALWAYS, SOCKETS],
        Role::Job(_) => &[ALWAYS, SOCKETS, FILES],
        Role::Compiler => &[ALWAYS],
    };
    for (call, _) in tables.iter().copied().flatten() {
        rules.insert(*call, Vec::new());
    }
    if matches!(role, Role::Gateway) {
        // Sending is not connecting.
        let fast_open = u64::from(libc::MSG_FASTOPEN.cast_unsigned());
        for (call, argument) in [(libc::SYS_sendto, 3), (libc::SYS_sendmsg, 2)] {
            let without = Op::MaskedEq(fast_open);
            let condition = SeccompCondition::new(argument, Len::Dword, without, 0)?;
            rules.insert(call, vec![SeccompRule::new(vec![condition])?]);
        }
    }
    for (call, argument, length, operator, value) in conditional(role) {
        let condition = SeccompCondition::new(argument, length, operator, value)?;
        rules.entry(call).or_default().push(SeccompRule::new(vec![condition])?);
    }
    let count = rules.len();
    let refuse = SeccompAction::Errno(libc::EPERM.cast_unsigned());
    let filter = SeccompFilter::new(rules, refuse, SeccompAction::Allow, arch()?)?;
    Ok((filter.try_into()?, count))
}

/// System calls that are let through with some arguments only: which one, how long, comparison, value.
fn conditional(role: &Role) -> Vec<(i64, u8, Len, Op, u64)> {
    let thread = u64::from((libc::CLONE_VM | libc::CLONE_THREAD).cast_unsigned());
    let constant = |value: i32| u64::from(value.cast_unsigned());
    let mut conditions = vec![
        // A thread, never a process.
        (libc::SYS_clone, 0, Len::Dword, Op::MaskedEq(thread), thread),
        // Naming a thread.
        (libc::SYS_prctl, 0, Len::Dword, Op::Eq, constant(libc::PR_SET_NAME)),
        // Transparent huge pages and names of mappings, as allocators ask.
        (libc::SYS_prctl, 0, Len::Dword, Op::Eq, constant(libc::PR_SET_VMA)),
        // Sockets that do not block. `FIONBIO`, and nothing that steers a device or a terminal.
        (libc::SYS_ioctl, 1, Len::Dword, Op::Eq, libc::FIONBIO),
        // Abort: a signal to itself and to nobody else.
        (libc::SYS_tgkill, 0, Len::Dword, Op::Eq, u64::from(std::process::id())),
        // Reading limits: setting them needs another process or a new value.
        (libc::SYS_prlimit64, 2, Len::Qword, Op::Eq, 0),
    ];
    if matches!(role, Role::Job(_) | Role::Gateway) {
        // The runtime's own pipe for signals, and what a worker gets of a peer; a pair is connected to
        // nobody else.
        let unix = constant(libc::AF_UNIX);
        conditions.push((libc::SYS_socketpair, 0, Len::Dword, Op::Eq, unix));
    }
    conditions
}

/// Tells the C library that the kernel is too old for `clone3`, whose flags a filter cannot see.
fn clone3_is_missing() -> Result<BpfProgram, seccompiler::BackendError> {
    let rules = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let missing = SeccompAction::Errno(libc::ENOSYS.cast_unsigned());
    SeccompFilter::new(rules, SeccompAction::Allow, missing, arch()?)?.try_into()
}

fn arch() -> Result<TargetArch, seccompiler::BackendError> {
    std::env::consts::ARCH.try_into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_role_has_a_filter() {
        let files = Role::Job(vec![("/tmp".into(), true)]);
        let counts: Vec<_> = [Role::Compiler, Role::Worker, Role::Job(Vec::new()), files]
            .iter()
            .map(|role| allow_list(role).expect("a filter").1)
            .collect();
        assert!(counts.is_sorted() && counts[0] < counts[1] && counts[2] < counts[3]);
    }

    #[test]
    fn no_call_is_listed_twice_and_each_has_its_reason() {
        let mut calls: Vec<_> = ALWAYS.iter().chain(SOCKETS).chain(FILES).collect();
        assert!(calls.iter().all(|(_, why)| !why.is_empty()));
        let count = calls.len();
        calls.sort_unstable();
        calls.dedup_by_key(|(call, _)| *call);
        assert_eq!(calls.len(), count);
        let conditions = conditional(&Role::Job(Vec::new()));
        assert!(conditions.iter().all(|(call, ..)| calls.iter().all(|(c, _)| c != call)));
    }
}
