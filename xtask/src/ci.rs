//! What CI runs, no more and no less: `cargo xtask ci`, also called `test`.

use crate::limits;
use crate::machine::{self, has};
use crate::report::{say, skip, step};
use crate::tidy;
use crate::workspace::Workspace;

/// Runs every step, and stops at the first that fails.
pub(crate) fn run(workspace: &Workspace) -> anyhow::Result<()> {
    let cargo = |name: &str, arguments: &[&str], variables: &[(&str, &str)]| {
        step(name, || machine::run(workspace.cargo(arguments).envs(variables.iter().copied())))
    };
    cargo("format", &["fmt", "--all", "--check"], &[])?;
    step("tidy", || tidy::check(workspace))?;
    let clippy = ["clippy", "--release", "--workspace", "--all-targets", "--", "-D", "warnings"];
    cargo("clippy", &clippy, &[])?;
    // The targets are named so that dependencies have clippy's features, and are not checked again.
    let doc = ["doc", "--release", "--workspace", "--no-deps", "--lib", "--bins", "--examples"];
    cargo("documentation", &doc, &[("RUSTDOCFLAGS", "-D warnings")])?;

    workspace.build()?;
    step("commands in the documentation", || tidy::check_commands(workspace))?;
    step("limits in the documentation", || limits::check(workspace))?;
    instructions(workspace)?;
    workspace.build_samples()?;
    tests(workspace)?;
    deny(workspace)?;
    say("\nEverything passed.");
    Ok(())
}

fn tests(workspace: &Workspace) -> anyhow::Result<()> {
    let run = |name: &str, arguments: &[&str]| {
        step(name, || {
            let mut cargo = workspace.cargo(arguments);
            cargo
                .env("CELL_BIN", workspace.binary("cell"))
                .env("CELL_SAMPLES", workspace.samples());
            // With a backtrace wanted, every error value walks the stack, and tests of time are off.
            machine::run(cargo.env_remove("RUST_BACKTRACE"))
        })
    };
    if has("cargo-nextest", &["nextest", "--version"]) {
        run("tests", &["nextest", "run", "--release", "--workspace"])?;
    } else {
        skip("cargo-nextest", "it is not installed; `cargo test` does its work");
        run(
            "tests",
            &["test", "--release", "--workspace", "--lib", "--bins", "--tests", "--examples"],
        )?;
    }
    hostile(workspace, &[])?;
    run("documentation tests", &["test", "--release", "--workspace", "--doc"])
}

/// Attacks a nucleus in every way of the suite, or in those that fit a word.
pub(crate) fn hostile(workspace: &Workspace, only: &[String]) -> anyhow::Result<()> {
    step("hostile suite", || {
        let mut suite = workspace.command(workspace.example("hostile"));
        suite
            .env("CELL_BIN", workspace.binary("cell"))
            .env("CELL_SAMPLES", workspace.samples())
            .env_remove("RUST_BACKTRACE");
        if let Some(only) = only.first() {
            suite.env("CELL_HOSTILE", only);
        }
        machine::run(&mut suite)
    })
}

/// Time is never the same; the instructions of a call are, and these guard them.
fn instructions(workspace: &Workspace) -> anyhow::Result<()> {
    if !has("valgrind", &["--version"]) {
        skip("instructions of a call", "valgrind is not installed");
        return Ok(());
    }
    step("instructions of a call", || {
        machine::run(workspace.command(workspace.binary("cell-bench")).arg("instructions"))
    })
}

fn deny(workspace: &Workspace) -> anyhow::Result<()> {
    if !has("cargo-deny", &["--version"]) {
        skip("licences and advisories", "cargo-deny is not installed");
        return Ok(());
    }
    step("licences and advisories", || machine::run(&mut workspace.cargo(&["deny", "check"])))
}
