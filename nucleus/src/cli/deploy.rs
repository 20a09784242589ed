//! `cell deploy` and `cell rm`: directories in, directories out.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use cell_abi::{CellHash, CellName};
use cell_host::gate;
use clap::Args;
use serde_json::json;

use super::{Exit, Failure, Global, Output};
use crate::daemon::control::{Answer, Request, ask};
use crate::home::{Home, read_file};
use crate::manifest::{self, Manifest};
use crate::peers::{Peers, Remote};

#[derive(Debug, Args)]
pub(crate) struct DeployArguments {
    /// A directory with Cell.toml and its module, or a project that `cell build` has built.
    #[arg(default_value = ".")]
    directory: PathBuf,
    /// Have other machines run it: names of peers, or KEY@HOST:PORT, with commas between. Cells here call it
    /// as any other; instead of DIRECTORY say its name.
    #[arg(long, value_name = "MACHINES", value_delimiter = ',')]
    at: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct RmArguments {
    /// The cell.
    name: CellName,
}

pub(crate) fn deploy(
    arguments: &DeployArguments,
    global: &Global,
    output: &Output,
) -> anyhow::Result<Exit> {
    let home = global.home()?;
    if !arguments.at.is_empty() {
        return deploy_elsewhere(&home, arguments, output);
    }
    let source = deployable(&arguments.directory)?;
    let deployed = put(&home, &source, output)?;
    output.result(&deployed.json(), &deployed.text());
    Ok(Exit::Done)
}

/// A cell that other machines run is a manifest that names them.
fn deploy_elsewhere(
    home: &Home,
    arguments: &DeployArguments,
    output: &Output,
) -> anyhow::Result<Exit> {
    let usage = |error: anyhow::Error| Failure::new(Exit::Usage, format!("{error:#}"));
    let name = arguments.directory.to_str().map(CellName::parse);
    let Some(Ok(name)) = name else {
        let message = "with --at say the cell's name, such as: cell deploy worker --at den";
        return Err(Failure::new(Exit::Usage, message).into());
    };
    let section = json!({ "cell": { "name": name.as_str(), "at": arguments.at } });
    let text = toml::to_string(&section).context("write the manifest")?;
    let manifest = Manifest::parse(&text).map_err(usage)?;
    home.create()?;
    let peers = Peers::read(home)?;
    for named in &manifest.at {
        Remote::of_manifest(named, name.as_str(), &peers).map_err(usage)?;
    }
    let target = home.cell(name.as_str());
    let old = Manifest::read(&target).map_or(manifest.wasm, |old| old.wasm);
    if target.join(old).exists() {
        bail!("`{name}` runs here; remove it first with `cell rm {name}`");
    }
    fs::create_dir_all(&target).with_context(|| format!("create {}", target.display()))?;
    replace(&target.join(manifest::FILE), text.as_bytes())?;
    let at = arguments.at.join(", ");
    output.result(
        &json!({ "cell": name.as_str(), "at": arguments.at }),
        &format!("{name} is run by {at}; cells here call it, and so does `cell call`"),
    );
    Ok(Exit::Done)
}

pub(crate) fn rm(
    arguments: &RmArguments,
    global: &Global,
    output: &Output,
) -> anyhow::Result<Exit> {
    let home = global.home()?;
    let name = arguments.name.as_str();
    let directory = home.cell(name);
    if !directory.is_dir() {
        bail!("there is no cell `{name}` in {}; `cell ps` lists them", home.cells().display());
    }
    // Out of sight first, in one step; then its files.
    let trash = home.cells().join(format!(".{name}-{}", std::process::id()));
    fs::rename(&directory, &trash).with_context(|| format!("remove {}", directory.display()))?;
    fs::remove_dir_all(&trash).with_context(|| format!("remove {}", trash.display()))?;
    ask(&home, &Request::Await { cell: name.to_owned(), hash: None })?;
    output.result(&json!({ "removed": name }), &format!("removed {name} and its data"));
    Ok(Exit::Done)
}

/// A cell that is in its place.
pub(crate) struct Deployed {
    pub(crate) manifest: Manifest,
    hash: CellHash,
    receptors: Vec<String>,
    live: bool,
}

impl Deployed {
    pub(crate) fn json(&self) -> serde_json::Value {
        json!({ "cell": self.manifest.name.as_str(), "hash": self.hash.to_string(), "receptors": self.receptors, "live": self.live })
    }

    pub(crate) fn text(&self) -> String {
        let state = if self.live { "live" } else { "in its place; it goes live with `cell up`" };
        format!(
            "{} {} is {state}: {}",
            self.manifest.name,
            self.hash.short(),
            self.receptors.join(", ")
        )
    }
}

/// Puts a built cell into `cells/` and waits until a running nucleus serves it.
pub(crate) fn put(home: &Home, source: &Path, output: &Output) -> anyhow::Result<Deployed> {
    let manifest = Manifest::read(source)?;
    let wasm = read_file(&source.join(&manifest.wasm), gate::MODULE_BYTES_MAX as u64)?;
    let info = gate::inspect(&wasm)
        .map_err(|error| Failure::new(Exit::Refused, format!("refused by the gate: {error}")))?;
    if info.kind != gate::ModuleKind::Cell {
        return Err(Failure::new(
            Exit::Refused,
            "this is a command, not a cell; run it with `cell run`",
        )
        .into());
    }
    home.create()?;
    let name = manifest.name.as_str();
    let target = home.cell(name);
    let toml = fs::read(source.join(manifest::FILE))?;
    if target.is_dir() {
        replace(&target.join(&manifest.wasm), &wasm)?;
        replace(&target.join(manifest::FILE), &toml)?;
    } else {
        let incoming = home.cells().join(format!(".{name}-{}", std::process::id()));
        fs::create_dir(&incoming).with_context(|| format!("create {}", incoming.display()))?;
        fs::write(incoming.join(&manifest.wasm), &wasm)?;
        fs::write(incoming.join(manifest::FILE), &toml)?;
        fs::rename(&incoming, &target).with_context(|| format!("create {}", target.display()))?;
    }
    let hash = CellHash::of(&wasm);
    let bar = output.progress(format!("compiling {name}"));
    let answer =
        ask(home, &Request::Await { cell: name.to_owned(), hash: Some(hash.to_string()) })?;
    bar.finish_and_clear();
    if let Some(Answer::Failed(reason)) = answer {
        return Err(
            Failure::new(Exit::Refused, format!("`{name}` was not deployed: {reason}")).into()
        );
    }
    let receptors = info.interface.receptors().iter().map(|r| r.name.to_string()).collect();
    Ok(Deployed { manifest, hash, receptors, live: answer.is_some() })
}

fn deployable(directory: &Path) -> anyhow::Result<PathBuf> {
    let manifest = Manifest::read(directory)?;
    if directory.join(&manifest.wasm).is_file() {
        return Ok(directory.to_owned());
    }
    let built = directory.join("target").join("cell").join(manifest.name.as_str());
    if built.join(&manifest.wasm).is_file() {
        return Ok(built);
    }
    bail!("{} has no {}; build it first with `cell build`", directory.display(), manifest.wasm)
}

fn replace(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
    fs::write(&temporary, bytes).with_context(|| format!("write {}", temporary.display()))?;
    fs::rename(&temporary, path).with_context(|| format!("replace {}", path.display()))
}
