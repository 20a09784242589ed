//! `cell dev`: build, deploy, and again on every change.

use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use notify::{RecursiveMode, Watcher as _};

use super::{Exit, Failure, Global, Output, build, daemon, deploy};

/// Changes that follow each other faster than this are one: an editor is still saving.
const QUIET: Duration = Duration::from_millis(80);

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The project.
    #[arg(default_value = ".")]
    directory: PathBuf,
    /// Build and deploy once, and end.
    #[arg(long)]
    once: bool,
}

pub(crate) fn run(arguments: &Arguments, global: &Global, output: &Output) -> anyhow::Result<Exit> {
    let home = global.home()?;
    if !daemon::is_up(&home) {
        daemon::up_in_background(&home, output)?;
    }
    let project = arguments
        .directory
        .canonicalize()
        .with_context(|| format!("open {}", arguments.directory.display()))?;
    if !["Cargo.toml", "Makefile"].iter().any(|file| project.join(file).is_file()) {
        let message = format!(
            "{} has neither Cargo.toml nor Makefile; make a project with `cell new`",
            project.display()
        );
        return Err(Failure::new(Exit::Usage, message).into());
    }
    let (changes, changed) = mpsc::channel();
    let root = project.clone();
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        let matters = |event: notify::Event| {
            !event.kind.is_access() && event.paths.iter().any(|path| is_source(&root, path))
        };
        if event.is_ok_and(matters) {
            // The receiver lives until this program ends.
            let _ = changes.send(());
        }
    })?;
    watch(&mut watcher, &project)?;
    loop {
        while changed.try_recv().is_ok() {}
        let deployed = build::build(&project, output)
            .and_then(|built| deploy::put(&home, &built.directory, output));
        match deployed {
            Ok(deployed) => output.result(&deployed.json(), &deployed.text()),
            Err(error) if arguments.once => return Err(error),
            Err(error) => output.note(&format!("error: {error:#}")),
        }
        if arguments.once {
            return Ok(Exit::Done);
        }
        output.note("watching for changes; Ctrl-C ends");
        changed.recv()?;
        while changed.recv_timeout(QUIET).is_ok() {}
    }
}

/// Whether a change of this file asks for a build: in the project's own directory only what builds are
/// made of, since builds and editors write there too.
fn is_source(project: &Path, path: &Path) -> bool {
    let Ok(within) = path.strip_prefix(project) else { return false };
    if within.components().count() > 1 {
        return !within.starts_with("target");
    }
    let known = ["Cargo.toml", "Cell.toml", "Makefile", "build.rs"]
        .iter()
        .any(|name| within == Path::new(name));
    known
        || within
            .extension()
            .is_some_and(|extension| ["c", "h"].iter().any(|known| extension == *known))
}

/// Watches the project's sources; what the build itself writes lies elsewhere.
fn watch(watcher: &mut notify::RecommendedWatcher, project: &Path) -> anyhow::Result<()> {
    watcher.watch(project, RecursiveMode::NonRecursive)?;
    for entry in std::fs::read_dir(project)?.flatten() {
        let name = entry.file_name();
        let hidden = name.to_string_lossy().starts_with('.');
        if entry.path().is_dir() && !hidden && name != "target" {
            watcher.watch(&entry.path(), RecursiveMode::Recursive)?;
        }
    }
    Ok(())
}
