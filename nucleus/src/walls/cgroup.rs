//! Control groups, version 2, where this process was given a group of its own, as systemd does with
//! `Delegate=yes`: each worker gets a subgroup with limits on memory, threads and processor time.
//!
//! Nothing is done in a group that holds other processes, or in the root group.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use super::Wall;

/// Name of the wall.
pub(crate) const NAME: &str = "cgroup";
/// Threads of a worker and of what it might start, if it could start anything.
pub(crate) const TASKS_MAX: u64 = 64;
/// Memory of a worker besides its guests', in bytes: code, stacks, tables and buffers.
pub(crate) const OWN_BYTES_MAX: u64 = 1 << 30;
/// What the controllers that we set limits with are called.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];
/// A group is removed when the kernel has taken the last process out of it.
const REMOVE_TRIES: u32 = 50;
const REMOVE_PAUSE: Duration = Duration::from_millis(2);

/// The group that this process was given, and what may be limited in it.
#[derive(Debug)]
pub(crate) struct Cgroups {
    root: PathBuf,
    controllers: Vec<&'static str>,
}

/// One worker's group; all in it are killed and it is removed when this is dropped.
#[derive(Debug)]
pub(crate) struct Group {
    directory: PathBuf,
    /// The limits that are set.
    pub(crate) limits: String,
}

impl Cgroups {
    /// Takes the group of this process, if it is the only one there, and moves into a subgroup: only
    /// groups without processes of their own can hand out limits.
    pub(crate) fn take() -> Result<Self, String> {
        let root = own_group()?;
        let text = |error: std::io::Error| format!("{}: {error}", root.display());
        let processes = fs::read_to_string(root.join("cgroup.procs")).map_err(text)?;
        let own = std::process::id().to_string();
        if processes.lines().any(|process| process != own) {
            return Err("other processes are in the same group".into());
        }
        let nucleus = root.join("nucleus");
        if !nucleus.is_dir() {
            fs::create_dir(&nucleus).map_err(text)?;
        }
        fs::write(nucleus.join("cgroup.procs"), &own).map_err(text)?;
        let available = fs::read_to_string(root.join("cgroup.controllers")).map_err(text)?;
        let controllers = CONTROLLERS
            .into_iter()
            .filter(|controller| available.split_whitespace().any(|name| name == *controller))
            .filter(|controller| {
                fs::write(root.join("cgroup.subtree_control"), format!("+{controller}")).is_ok()
            })
            .collect();
        Ok(Self { root, controllers })
    }

    /// Makes a group for a worker that has not run anything yet, and puts it there.
    pub(crate) fn enclose(
        &self,
        name: &str,
        process: u32,
        memory_bytes_max: u64,
        cores_max: Option<f64>,
    ) -> Result<Group, String> {
        let directory = self.root.join(name);
        let text = |error: std::io::Error| format!("{}: {error}", directory.display());
        fs::create_dir(&directory).map_err(text)?;
        // From here on it is removed again, whatever fails.
        let mut group = Group { directory: directory.clone(), limits: String::new() };
        let mut limits = Vec::new();
        let mut limit = |controller: &str, file: &str, value: String| {
            if !self.controllers.contains(&controller) {
                return Ok(());
            }
            fs::write(directory.join(file), &value).map_err(text)?;
            limits.push(format!("{file} {value}"));
            Ok::<(), String>(())
        };
        let memory = memory_bytes_max.saturating_add(OWN_BYTES_MAX);
        limit("memory", "memory.max", memory.to_string())?;
        limit("pids", "pids.max", TASKS_MAX.to_string())?;
        if let Some(cores) = cores_max {
            limit("cpu", "cpu.max", format!("{:.0} 100000", cores * 100_000.0))?;
        }
        fs::write(directory.join("cgroup.procs"), process.to_string()).map_err(text)?;
        group.limits = match limits.as_slice() {
            [] => "a group without limits: no controller of version 2 is available".into(),
            limits => limits.join(", "),
        };
        Ok(group)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Older kernels have no such file; the worker is then killed by its number alone.
        let _ = fs::write(self.directory.join("cgroup.kill"), "1");
        for _ in 0..REMOVE_TRIES {
            match fs::remove_dir(&self.directory) {
                Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => {
                    thread::sleep(REMOVE_PAUSE)
                }
                _ => return,
            }
        }
    }
}

/// What is told of a group that a worker is in, or why it is in none. It is no fault of a machine
/// that delegates nothing.
pub(crate) fn wall(group: Result<&Group, &str>) -> Wall {
    let (stands, detail) = match group {
        Ok(group) => (true, group.limits.clone()),
        Err(why) => (false, format!("optional: {why}")),
    };
    Wall { name: NAME.into(), stands, detail }
}

fn own_group() -> Result<PathBuf, String> {
    let read = |path: &str| fs::read_to_string(path).map_err(|error| format!("{path}: {error}"));
    let groups = read("/proc/self/cgroup")?;
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/"));
    let own = own.ok_or("this kernel has no control groups of version 2")?;
    if own.is_empty() {
        return Err("this process is in the root group; nothing was delegated to it".into());
    }
    let mounts = read("/proc/self/mountinfo")?;
    let mount = mount_point(&mounts).ok_or("control groups of version 2 are not mounted")?;
    Ok(Path::new(mount).join(own))
}

/// Where the first file system of type `cgroup2` is mounted.
fn mount_point(mountinfo: &str) -> Option<&str> {
    mountinfo.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        (after.split(' ').next()? == "cgroup2").then(|| before.split(' ').nth(4))?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_is_found() {
        let text = "29 22 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                    41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n";
        assert_eq!(mount_point(text), Some("/sys/fs/cgroup/unified"));
        assert_eq!(mount_point(""), None);
    }
}
