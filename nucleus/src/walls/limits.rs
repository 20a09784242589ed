//! Limits on what a process may take of the machine, set by itself before it is not trusted.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What a process behind walls may take. A `None` is not limited here.
#[derive(Debug, Clone, Default)]
pub(crate) struct Resources {
    /// Processor time, in seconds; the process is told so by `SIGXCPU`, which ends it, and is killed
    /// a second later.
    pub(crate) cpu_s_max: Option<u64>,
    /// Address space, in bytes; allocating beyond it fails.
    pub(crate) address_bytes_max: Option<u64>,
    /// Memory that is private and writable, in bytes: heaps, stacks, guests' memories.
    pub(crate) data_bytes_max: Option<u64>,
    /// Size of any file it writes, in bytes, memory files included.
    pub(crate) file_bytes_max: Option<u64>,
    /// Open descriptors; `None` raises the limit as far as the system lets it.
    pub(crate) descriptors_max: Option<u64>,
}

impl Resources {
    /// Sets every limit; the text shows them.
    pub(super) fn apply(&self) -> Result<String, String> {
        let descriptors =
            self.descriptors_max.or_else(|| getrlimit(Resource::Nofile).maximum).unwrap_or(4096);
        let limits = [
            ("core", Resource::Core, Some(0)),
            ("memlock", Resource::Memlock, Some(0)),
            ("msgqueue", Resource::Msgqueue, Some(0)),
            ("nofile", Resource::Nofile, Some(descriptors)),
            ("cpu_s", Resource::Cpu, self.cpu_s_max),
            ("as", Resource::As, self.address_bytes_max),
            ("data", Resource::Data, self.data_bytes_max),
            ("fsize", Resource::Fsize, self.file_bytes_max),
        ];
        let mut text = Vec::new();
        for (name, resource, max) in limits {
            let Some(max) = max else { continue };
            // A lower limit that was there already stays.
            let max = getrlimit(resource).maximum.map_or(max, |hard| hard.min(max));
            // The first of the two ends a process by a signal that says why.
            let hard = if resource == Resource::Cpu { max + 1 } else { max };
            setrlimit(resource, Rlimit { current: Some(max), maximum: Some(hard) })
                .map_err(|error| format!("{name}: {error}"))?;
            text.push(format!("{name} {max}"));
        }
        Ok(text.join(", "))
    }
}
