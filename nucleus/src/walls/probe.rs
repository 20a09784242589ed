//! Tries, from behind the walls, what the walls are there to stop, and tells which one stopped it.
//!
//! `cell wall-probe` is a process of its own that raises the same walls as a worker, by the same
//! code, and then attacks: so what is shown is what the kernel answers, not what was asked of it.

use std::fs::File;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Resources, Role, Wall, close_inherited_descriptors, raise_without};

/// What was tried and what came of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Attempt {
    pub(crate) what: String,
    /// `denied`, or `allowed` where no wall stood in the way.
    pub(crate) outcome: String,
    /// The wall that denied it, told by its error.
    pub(crate) wall: Option<String>,
    pub(crate) error: Option<String>,
}

/// The walls of a role on this machine, and what they stopped.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) walls: Vec<Wall>,
    pub(crate) attempts: Vec<Attempt>,
}

/// Raises a worker's walls, without those named, and attacks from behind them.
///
/// `identity` is a file that must stay secret; `socket` is one that somebody listens on.
pub(crate) fn run(left_out: &[&str], identity: &Path, socket: &Path) -> anyhow::Result<Report> {
    close_inherited_descriptors()?;
    let walls = raise_without(&Role::Worker, &Resources::default(), left_out);
    let tcp = SocketAddr::from(([127, 0, 0, 1], 9));
    let stands = |name: &str| walls.iter().any(|wall| wall.name == name && wall.stands);
    let (seccomp, landlock) = (stands("seccomp"), stands("landlock"));
    let attempt = |what: &str, attack: &dyn Fn() -> io::Result<()>| {
        let error = attack().err();
        let wall = error.as_ref().and_then(|error| match error.raw_os_error() {
            Some(libc::EPERM) if seccomp => Some("seccomp"),
            Some(libc::EACCES | libc::EPERM) if landlock => Some("landlock"),
            Some(libc::EACCES | libc::EPERM) => Some("capabilities"),
            _ => None,
        });
        Attempt {
            what: what.to_owned(),
            outcome: if wall.is_some() { "denied" } else { "allowed" }.to_owned(),
            wall: wall.map(str::to_owned),
            error: error.map(|error| error.to_string()),
        }
    };
    let attempts = vec![
        attempt("read the identity", &|| File::open(identity).map(drop)),
        attempt("open a file of the system", &|| File::open("/etc/passwd").map(drop)),
        attempt("list a directory", &|| std::fs::read_dir("/").map(drop)),
        attempt("write a file", &|| File::create(socket.with_extension("probe")).map(drop)),
        attempt("connect to a Unix socket", &|| UnixStream::connect(socket).map(drop)),
        attempt("listen at a Unix socket", &|| {
            UnixListener::bind(socket.with_extension("probe.sock")).map(drop)
        }),
        attempt("connect to a port", &|| {
            let answer = TcpStream::connect_timeout(&tcp, Duration::from_millis(200));
            reached(answer.map(drop))
        }),
        attempt("listen at a port", &|| TcpListener::bind(("127.0.0.1", 0)).map(drop)),
        attempt("start a process", &|| {
            let mut child = Command::new("/bin/true").spawn()?;
            child.wait().map(drop)
        }),
        attempt("signal another process", &|| {
            let parent = rustix::process::getppid();
            let parent = parent.ok_or_else(|| io::Error::other("there is no parent"))?;
            rustix::process::test_kill_process(parent).map_err(io::Error::from)
        }),
        attempt("trace another process", &trace_parent),
        attempt("become another program", &become_another),
    ];
    Ok(Report { walls, attempts })
}

/// A connection that was refused or that nobody answered did leave the process.
fn reached(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::ConnectionRefused | io::ErrorKind::TimedOut
            ) =>
        {
            Ok(())
        }
        other => other,
    }
}

/// Replaces this program if nothing stops it: the report then ends before this attempt's answer, so
/// it replaces itself with a program that says so.
fn become_another() -> io::Result<()> {
    Err(Command::new("/bin/echo").arg("{\"became\":\"another program\"}").exec())
}

#[allow(unsafe_code, reason = "no crate of this workspace wraps ptrace safely")]
fn trace_parent() -> io::Result<()> {
    let parent = rustix::process::getppid().map_or(1, |pid| pid.as_raw_nonzero().get());
    let null = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: PTRACE_SEIZE takes no pointer that is read; a process that could be seized is let go
    // when this one ends.
    if unsafe { libc::ptrace(libc::PTRACE_SEIZE, parent, null, null) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
