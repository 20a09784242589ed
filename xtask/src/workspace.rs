//! Where things are in the workspace, and how they are built: the product and the samples.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;

use crate::machine;
use crate::report::{say, skip, step};

/// The one selection of packages and targets that every build uses, so that wasmtime is compiled
/// once. Cargo turns on the features that the *selected* packages ask for together, with their
/// dev-dependencies when tests or examples are among them; another selection is another wasmtime.
/// This one has the same features as `cargo test --workspace`.
const SELECTION: [&str; 4] = ["--release", "--workspace", "--bins", "--examples"];

/// A cell is deployed, so it gets no debug information and is optimised as a whole.
const CELL_PROFILE: [(&str, &str); 4] = [
    ("CARGO_PROFILE_RELEASE_DEBUG", "false"),
    ("CARGO_PROFILE_RELEASE_INCREMENTAL", "false"),
    ("CARGO_PROFILE_RELEASE_LTO", "true"),
    ("CARGO_PROFILE_RELEASE_STRIP", "true"),
];

/// The workspace this program was started for.
#[derive(Debug)]
pub(crate) struct Workspace {
    pub(crate) root: PathBuf,
    /// Cargo's target directory.
    pub(crate) target: PathBuf,
}

impl Workspace {
    pub(crate) fn find() -> anyhow::Result<Self> {
        let package =
            std::env::var_os("CARGO_MANIFEST_DIR").context("start this as `cargo xtask`")?;
        let root = Path::new(&package).parent().context("find the workspace")?.to_owned();
        // This program lies in `<target>/<profile>/`, wherever the user keeps that.
        let program = std::env::current_exe().context("find this program")?;
        let target = program.ancestors().nth(2).context("find the target directory")?.to_owned();
        Ok(Self { root, target })
    }

    /// A program built by [`Self::build`].
    pub(crate) fn binary(&self, name: &str) -> PathBuf {
        self.target.join("release").join(name)
    }

    /// An example built by [`Self::build`].
    pub(crate) fn example(&self, name: &str) -> PathBuf {
        self.target.join("release").join("examples").join(name)
    }

    /// Every sample as it is deployed: `<name>/` for a cell, `<name>.wasm` for a program.
    pub(crate) fn samples(&self) -> PathBuf {
        self.target.join("samples")
    }

    /// A command that runs in the workspace's root.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.root);
        command
    }

    /// `cargo` in the workspace's root.
    pub(crate) fn cargo(&self, arguments: &[&str]) -> Command {
        let mut cargo = self.command("cargo");
        cargo.args(arguments).env("CARGO_TARGET_DIR", &self.target);
        cargo
    }

    /// Builds every program and example.
    pub(crate) fn build(&self) -> anyhow::Result<()> {
        step("build", || machine::run(self.cargo(&["build"]).args(SELECTION)))
    }

    /// Builds every sample with the built `cell`, and gathers them.
    ///
    /// Returns whether the C sample is among them.
    pub(crate) fn build_samples(&self) -> anyhow::Result<bool> {
        step("wasm target", machine::wasm_target)?;
        let c = machine::clang();
        if let Err(why) = &c {
            skip("C sample", &format!("{why:#}"));
        }
        step("samples", || {
            let gathered = self.samples();
            if gathered.exists() {
                fs::remove_dir_all(&gathered).context("remove the old samples")?;
            }
            let mut folders: Vec<PathBuf> = fs::read_dir(self.root.join("samples"))
                .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect())
                .context("list samples/")?;
            folders.sort();
            for folder in folders.iter().filter(|folder| folder.is_dir()) {
                if c.is_ok() || folder.join("Cargo.toml").exists() {
                    self.build_sample(folder)?;
                }
            }
            Ok(())
        })?;
        Ok(c.is_ok())
    }

    fn build_sample(&self, folder: &Path) -> anyhow::Result<()> {
        let name = folder.file_name().context("name a sample")?.to_string_lossy();
        say(&format!("    {name}"));
        let mut cell = self.command(self.binary("cell"));
        cell.args(["build", "--quiet"]).arg(folder).env("CARGO_TARGET_DIR", &self.target);
        cell.envs(CELL_PROFILE).stdout(std::process::Stdio::null());
        machine::run(&mut cell)?;
        copy(&folder.join("target/cell"), &self.samples(), &name)
    }
}

/// Copies the entries of `from` that are named for the sample.
fn copy(from: &Path, to: &Path, name: &str) -> anyhow::Result<()> {
    let file = format!("{name}.wasm");
    if from.join(name).is_dir() {
        copy_folder(&from.join(name), &to.join(name))
    } else {
        fs::create_dir_all(to)
            .and_then(|()| fs::copy(from.join(&file), to.join(&file)))
            .with_context(|| format!("copy {file}"))?;
        Ok(())
    }
}

/// Copies the files of a folder, without folders in it.
pub(crate) fn copy_folder(from: &Path, to: &Path) -> anyhow::Result<()> {
    let copy = || {
        fs::create_dir_all(to)?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
        Ok::<(), std::io::Error>(())
    };
    copy().with_context(|| format!("copy {} to {}", from.display(), to.display()))
}
