//! `cargo xtask`: everything this workspace automates, in Rust and without another tool.
//!
//! It runs cargo, the built `cell` and system tools; it holds no product code.

mod ci;
mod demo;
mod fuzz;
mod limits;
mod machine;
mod report;
mod tidy;
mod workspace;

use std::process::ExitCode;

use anyhow::bail;

use crate::report::say;
use crate::workspace::Workspace;

const HELP: &str = "\
cargo xtask demo          build everything, then show what Cell does, in numbered steps
cargo xtask test          everything that CI runs
cargo xtask ci            the same
cargo xtask bench [ARGS]  build, then run the benchmark with ARGS; --help lists them
cargo xtask limits        build, then write the table of limits into docs/SECURITY.md
cargo xtask hostile [ROW] build, then attack a nucleus; ROW: a class (I1), or a part of a row's name
cargo xtask fuzz [ARGS]   look for inputs that break a promise: --seconds N for each target (60),
                          --target NAME for one, --input FILE to run that again
cargo xtask help          this text";

fn main() -> ExitCode {
    if let Some(code) = fuzz::compile() {
        return code;
    }
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report::error(&error);
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let command = arguments.next().unwrap_or_else(|| "help".into());
    let rest: Vec<String> = arguments.collect();
    if !["bench", "fuzz", "hostile"].contains(&&*command) && !rest.is_empty() {
        bail!("`cargo xtask {command}` takes no arguments, and got {rest:?}");
    }
    match command.as_str() {
        "demo" => demo::run(&Workspace::find()?),
        "ci" | "test" => ci::run(&Workspace::find()?),
        "limits" => limits::write(&Workspace::find()?),
        "bench" => bench(&Workspace::find()?, &rest),
        "hostile" => hostile(&Workspace::find()?, &rest),
        "fuzz" => fuzz::run(&Workspace::find()?, &rest),
        "help" | "--help" | "-h" => {
            say(HELP);
            Ok(())
        }
        other => bail!("there is no command `{other}`\n\n{HELP}"),
    }
}

fn hostile(workspace: &Workspace, only: &[String]) -> anyhow::Result<()> {
    workspace.build()?;
    workspace.build_samples()?;
    ci::hostile(workspace, only)
}

fn bench(workspace: &Workspace, arguments: &[String]) -> anyhow::Result<()> {
    workspace.build()?;
    let mut bench = workspace.command(workspace.binary("cell-bench"));
    // With a backtrace wanted, every error value built on the path walks the stack.
    bench.env_remove("RUST_BACKTRACE").args(arguments);
    machine::run(&mut bench)
}
