//! The operating system's walls around a process that runs or compiles strangers' code.
//!
//! Each such process raises its own walls before it reads the first byte that is not trusted, and
//! reports which of them stand. None can be taken down again. What a wall is for, and what it does
//! not stop, is told in `docs/SECURITY.md`.

pub(crate) mod cgroup;
pub(crate) mod probe;

mod files;
mod limits;
mod syscalls;

use std::path::PathBuf;

use rustix::thread::CapabilitySets;
use serde::{Deserialize, Serialize};

pub(crate) use limits::Resources;

/// What a process behind walls is there for; it may do only what that needs.
#[derive(Debug, Clone)]
pub(crate) enum Role {
    /// Runs cells: sockets, memory and threads, but no name of any file.
    Worker,
    /// Runs one job, which may see these directories: path, and whether it may only read.
    Job(Vec<(PathBuf, bool)>),
    /// Speaks with other machines over sockets it was handed: no name of any file, and no new connection.
    Gateway,
    /// Compiles one module: memory, and three pipes.
    Compiler,
}

/// One wall, and whether it stands here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Wall {
    pub(crate) name: String,
    pub(crate) stands: bool,
    /// How it stands, or why it does not.
    pub(crate) detail: String,
}

/// Closes every descriptor but the three standard ones, whatever was open in the program that
/// started this one.
#[allow(unsafe_code, reason = "no safe call closes descriptors that nothing owns")]
pub(crate) fn close_inherited_descriptors() -> std::io::Result<()> {
    // SAFETY: called first thing in the process, when nothing in it has opened a descriptor yet, so
    // nobody's descriptor is closed under them.
    if unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0) } == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}

/// Raises every wall this machine has, and tells which stand.
///
/// Must be called while the process has one thread: the walls hold for it and for those it starts.
pub(crate) fn raise(role: &Role, resources: &Resources) -> Vec<Wall> {
    let mut walls = raise_without(role, resources, &[]);
    walls.sort_by(|a, b| a.name.cmp(&b.name));
    walls
}

/// As [`raise`], but leaves these walls away, so that a probe can tell which one stops what.
fn raise_without(role: &Role, resources: &Resources, left_out: &[&str]) -> Vec<Wall> {
    let mut walls = Vec::new();
    let mut wall = |name: &str, raise: &dyn Fn() -> Result<String, String>| {
        if !left_out.contains(&name) {
            let raised = raise();
            let stands = raised.is_ok();
            let detail = raised.unwrap_or_else(|why| why);
            walls.push(Wall { name: name.to_owned(), stands, detail });
        }
    };
    wall("rlimits", &|| resources.apply());
    wall("capabilities", &drop_capabilities);
    wall("no_new_privs", &|| {
        rustix::thread::set_no_new_privs(true).map_err(|e| e.to_string())?;
        Ok("no program it starts gains rights".into())
    });
    wall("not dumpable", &|| {
        use rustix::process::{DumpableBehavior, set_dumpable_behavior};
        set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(|e| e.to_string())?;
        Ok("other processes of this user cannot read its memory".into())
    });
    wall("landlock", &|| files::restrict(role));
    // Last: the filter forbids what the other walls are raised with.
    wall("seccomp", &|| syscalls::restrict(role));
    walls
}

/// Gives up what a process of root may do besides owning files.
fn drop_capabilities() -> Result<String, String> {
    let none = CapabilitySets {
        effective: rustix::thread::CapabilitySet::empty(),
        permitted: rustix::thread::CapabilitySet::empty(),
        inheritable: rustix::thread::CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, none).map_err(|e| e.to_string())?;
    Ok("none are held".into())
}
