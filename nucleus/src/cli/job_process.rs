//! The walled process that runs a stranger's program for a command.

use std::process::{Child, Command, ExitStatus, Stdio};

use anyhow::Context as _;

use crate::job_worker::Prepare;
use crate::link::Link;

/// The process that will run the job; it ends with this value at the latest.
pub(super) struct JobProcess {
    pub(super) child: Child,
    pub(super) link: Link,
}

impl JobProcess {
    pub(super) fn start(prepare: &Prepare) -> anyhow::Result<Self> {
        let (link, theirs) = Link::pair()?;
        let child = Command::new(std::env::current_exe()?)
            .arg("job-worker")
            .env_clear()
            .stdin(Stdio::from(theirs.into_fd()))
            .stdout(Stdio::null())
            .spawn()
            .context("start the job's process")?;
        let this = Self { child, link };
        this.link.send(prepare, &[]).context("start the job's process")?;
        Ok(this)
    }

    pub(super) fn end(&mut self) -> std::io::Result<ExitStatus> {
        // Errors here mean that it has ended by itself.
        let _ = self.child.kill();
        self.child.wait()
    }
}

impl Drop for JobProcess {
    fn drop(&mut self) {
        let _ = self.end();
    }
}
