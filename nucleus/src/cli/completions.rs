//! `cell completions`.

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use super::{Cli, Exit};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The shell.
    shell: Shell,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<Exit> {
    clap_complete::generate(arguments.shell, &mut Cli::command(), "cell", &mut std::io::stdout());
    Ok(Exit::Done)
}
