//! A nucleus that a test owns.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::ops::Deref;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::process::Process;
use crate::{GUARD, Home, eventually, wat};

/// `cell up --foreground` in a home; killed, with its worker, when dropped.
#[derive(Debug)]
pub struct Nucleus {
    home: Home,
    child: Child,
}

impl Nucleus {
    /// Starts a nucleus in a fresh home.
    #[track_caller]
    pub fn new() -> Self {
        Self::up(&Home::new())
    }

    /// Starts a nucleus in this home and waits until it answers.
    #[track_caller]
    pub fn up(home: &Home) -> Self {
        Self::up_with(home, |_| {})
    }

    /// The same, with a command that differs: more options, or an environment.
    #[track_caller]
    pub fn up_with(home: &Home, change: impl FnOnce(&mut Command)) -> Self {
        let log = File::options()
            .create(true)
            .append(true)
            .open(home.path().join("nucleus.log"))
            .expect("open the log");
        let mut command = home.command(["up", "--foreground"]);
        command.stdout(Stdio::from(log.try_clone().unwrap())).stderr(Stdio::from(log));
        change(&mut command);
        let child = eventually("the binary can be started", || command.spawn().ok());
        let mut this = Self { home: home.clone(), child };
        let (home, child) = (this.home.clone(), &mut this.child);
        eventually("the nucleus answers", || {
            if let Some(status) = child.try_wait().unwrap() {
                panic!("the nucleus ended with {status}: {}", home.log());
            }
            (ask(&home, "\"ping\"")?.as_str() == Some("done")).then_some(())
        });
        this
    }

    /// Drops a sample into `cells/` and waits until it is live.
    #[track_caller]
    pub fn deploy(&self, name: &str) -> Value {
        self.put_sample(name);
        self.wait_for(name, "live")
    }

    /// Deploys a module written by hand, with more lines for its manifest.
    #[track_caller]
    pub fn deploy_wat(&self, name: &str, text: &str, manifest: &str) -> Value {
        self.put(name, &wat::manifest(name, manifest), &wat::compile(text));
        self.wait_for(name, "live")
    }

    /// The nucleus itself.
    pub fn process(&self) -> Process {
        Process::of(self.child.id()).expect("the nucleus runs")
    }

    /// The process that runs guests.
    #[track_caller]
    pub fn worker(&self) -> Process {
        let nucleus = self.process();
        eventually("there is a worker", || {
            nucleus
                .children()
                .into_iter()
                .find(|child| child.arguments().get(1).is_some_and(|word| word == "worker"))
        })
    }

    /// `cell down`; fails the test unless everything ended.
    #[track_caller]
    pub fn down(mut self) -> Home {
        let worker = self.worker();
        self.home.cell(["down"]).expect(0);
        let code = crate::home::wait(&mut self.child, "a nucleus that was told to stop");
        assert_eq!(code, Some(0), "{}", self.home.log());
        assert!(!worker.is_alive(), "the worker outlived its nucleus");
        self.home.clone()
    }

    /// SIGKILL, and waits until nothing of it runs.
    #[track_caller]
    pub fn kill(mut self) -> Home {
        self.end();
        self.home.clone()
    }

    #[track_caller]
    fn end(&mut self) {
        let Some(nucleus) = Process::of(self.child.id()) else { return };
        let children = nucleus.children();
        let _ = self.child.kill();
        let _ = self.child.wait();
        eventually("the nucleus took its children along", || {
            children.iter().all(|child| !child.is_alive()).then_some(())
        });
    }
}

impl Default for Nucleus {
    fn default() -> Self {
        Self::new()
    }
}

impl Deref for Nucleus {
    type Target = Home;

    fn deref(&self) -> &Home {
        &self.home
    }
}

impl Drop for Nucleus {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // The log is what explains a failure; the home is about to vanish.
            let _ = writeln!(
                std::io::stderr(),
                "--- nucleus.log of {}\n{}",
                self.home.path().display(),
                self.home.log()
            );
            let _ = self.child.kill();
            let _ = self.child.wait();
            return;
        }
        self.end();
    }
}

/// A nucleus that `cell up` left in the background; told to stop when dropped.
#[derive(Debug)]
pub struct Background {
    home: Home,
}

impl Background {
    /// `cell up` in this home.
    #[track_caller]
    pub fn up(home: &Home) -> Self {
        let this = Self { home: home.clone() };
        home.cell(["up"]).expect(0);
        this
    }

    /// `cell down`; fails the test unless everything ended.
    #[track_caller]
    pub fn down(self) {
        self.home.cell(["down"]).expect(0);
        let naming = || crate::process::naming(self.home.path());
        // `down` waits for the lock, which the kernel lets go of just before the process is gone.
        eventually("the nucleus is gone", || naming().is_empty().then_some(()));
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.home.command(["down"]).output();
        // Whatever did not listen names this home on its command line, and no other process does.
        crate::process::naming(self.home.path()).into_iter().for_each(Process::kill);
    }
}

/// One line to the control socket, and the answer; `None` while nobody answers.
pub(crate) fn ask(home: &Home, request: &str) -> Option<Value> {
    let stream = UnixStream::connect(home.path().join("nucleus.sock")).ok()?;
    stream.set_read_timeout(Some(GUARD)).ok()?;
    (&stream).write_all(format!("{request}\n").as_bytes()).ok()?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).ok()?;
    serde_json::from_str(&line).ok()
}
