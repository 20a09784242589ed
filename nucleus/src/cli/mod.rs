//! The command line: what can be typed, and what every command shares.

mod audit;
mod build;
mod call;
pub(crate) mod channel;
mod completions;
mod daemon;
mod deploy;
mod dev;
mod donate;
mod exit;
mod figures;
mod find;
mod inspect;
mod job_end;
mod job_funds;
mod job_process;
mod job_receipt;
mod ledger;
mod limits;
pub(crate) mod logging;
mod logs;
mod new;
mod output;
mod peer;
mod ps;
mod receipts;
pub(crate) mod remote;
mod run;
mod sandbox;
mod top;
mod verify;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::home::Home;
pub(crate) use exit::{Exit, Failure};
pub(crate) use limits::LIMITS;
pub(crate) use output::Output;

/// Run strangers' code in a sandbox, metered to the instruction and billed in ATP.
#[derive(Debug, Parser)]
#[command(name = "cell", version, propagate_version = true, after_help = AFTER_HELP)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    command: Command,
}

const AFTER_HELP: &str = "\
Exit codes: 0 done, 1 failed, 2 usage, 122 out of ATP, 123 trapped or over a limit, 124 timed out,
125 the nucleus failed, 126 refused by the gate or a policy. Under `cell run` a job's own code passes through.

Start here:  cell new hello && cd hello && cell dev";

/// Names the shared ledger where a command line should not: it may hold a password.
pub(crate) const LEDGER_VARIABLE: &str = "CELL_LEDGER";

/// Options of every command.
#[derive(Debug, Args)]
pub(crate) struct Global {
    /// Where identity, ledger and cells are kept.
    #[arg(long, global = true, env = "CELL_HOME", value_name = "DIR")]
    home: Option<PathBuf>,
    /// Keep the ledger in this PostgreSQL database, as `ledger` in nucleus.toml says for all commands.
    #[arg(long = "ledger", global = true, env = LEDGER_VARIABLE, value_name = "URL", hide_env_values = true)]
    ledger_url: Option<String>,
    /// Print JSON for machines.
    #[arg(long, global = true)]
    json: bool,
    /// Print nothing but results and errors.
    #[arg(long, short, global = true)]
    quiet: bool,
}

impl Global {
    /// The home that was asked for, or `~/.cell`.
    pub(crate) fn home(&self) -> anyhow::Result<Home> {
        Ok(Home::locate(self.home.clone())?.with_ledger(self.ledger_url.clone()))
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a project for a new cell.
    New(new::Arguments),
    /// Build a cell or job to WebAssembly.
    Build(build::Arguments),
    /// Build, deploy, and do both again whenever a source file changes.
    Dev(dev::Arguments),
    /// Start the nucleus.
    Up(daemon::UpArguments),
    /// Stop the nucleus.
    Down,
    /// Put a cell into the nucleus.
    Deploy(deploy::DeployArguments),
    /// Remove a cell and its data.
    Rm(deploy::RmArguments),
    /// Call a receptor of a cell with JSON.
    Call(call::Arguments),
    /// Run a WASI program once, with a budget.
    Run(run::Arguments),
    /// List the cells, what they do and what they burned.
    Ps,
    /// Watch the cells live; without a terminal, print how they fare as lines of JSON.
    Top(top::Arguments),
    /// Show a cell's log.
    Logs(logs::Arguments),
    /// Show what a module or a cell is made of, and what it costs to start.
    Inspect(inspect::Arguments),
    /// Show this machine's identity and accounts.
    Id,
    /// Show balances and history, grant ATP, verify the journal.
    #[command(subcommand)]
    Ledger(ledger::Command),
    /// Write or check one file that says all that happened to money here.
    #[command(subcommand)]
    Audit(audit::Command),
    /// Know other machines, and let them call cells here.
    #[command(subcommand)]
    Peer(peer::Command),
    /// Show, claim and close the channels by which machines pay one another.
    #[command(subcommand)]
    Channel(channel::Command),
    /// Lend this machine to others while you do not need it.
    Donate(donate::Arguments),
    /// Run what a receipt bills again, and say where it differs.
    Verify(verify::Arguments),
    /// Print a completion script for a shell.
    Completions(completions::Arguments),
    /// The process that runs guests; started by the nucleus.
    #[command(hide = true)]
    Worker(logging::WorkerArguments),
    /// The process that speaks with other machines; started by the nucleus.
    #[command(hide = true)]
    Gateway,
    /// The process that takes a job from another machine; started by the nucleus.
    #[command(hide = true)]
    PeerJob(remote::serve::Arguments),
    /// The process that another machine pays; started by the nucleus.
    #[command(hide = true)]
    PeerChannel(channel::payee::Arguments),
    /// The process that answers another machine about deposits; started by the nucleus.
    #[command(hide = true)]
    PeerEscrow(channel::escrow::Arguments),
    /// The process that runs one job; started by `cell run`.
    #[command(hide = true)]
    JobWorker,
    /// The process that compiles one module; started by the nucleus.
    #[command(hide = true)]
    CompileWorker,
    /// A process behind the walls that tries to get out; started by `cell inspect --sandbox`.
    #[command(hide = true)]
    WallProbe(sandbox::ProbeArguments),
}

/// Runs what was typed.
pub(crate) fn main() -> ExitCode {
    let cli = Cli::parse();
    let output = Output::new(cli.global.json, cli.global.quiet);
    match cli.run(&output) {
        Ok(Exit::Done) if output::is_lost() => Exit::Failed.into(),
        Ok(exit) => exit.into(),
        Err(error) => {
            let exit = Exit::of(&error);
            output.error(&error, exit);
            exit.into()
        }
    }
}

impl Cli {
    fn run(&self, output: &Output) -> anyhow::Result<Exit> {
        let global = &self.global;
        match &self.command {
            Command::New(arguments) => new::run(arguments, global, output),
            Command::Build(arguments) => build::run(arguments, output),
            Command::Dev(arguments) => dev::run(arguments, global, output),
            Command::Up(arguments) => daemon::up(arguments, global, output),
            Command::Down => daemon::down(global, output),
            Command::Deploy(arguments) => deploy::deploy(arguments, global, output),
            Command::Rm(arguments) => deploy::rm(arguments, global, output),
            Command::Call(arguments) => call::run(arguments, global, output),
            Command::Run(arguments) => run::run(arguments, global, output),
            Command::Ps => ps::run(global, output),
            Command::Top(arguments) => top::run(arguments, global, output),
            Command::Logs(arguments) => logs::run(arguments, global, output),
            Command::Inspect(arguments) => inspect::run(arguments, global, output),
            Command::Id => inspect::id(global, output),
            Command::Ledger(command) => ledger::run(command, global, output),
            Command::Audit(command) => audit::run(command, global, output),
            Command::Peer(command) => peer::run(command, global, output),
            Command::Channel(command) => channel::run(command, global, output),
            Command::PeerChannel(arguments) => {
                channel::payee::serve(arguments, global).map(|()| Exit::Done)
            }
            Command::PeerEscrow(arguments) => {
                channel::escrow::serve(arguments, global).map(|()| Exit::Done)
            }
            Command::Donate(arguments) => donate::run(arguments, global, output),
            Command::Verify(arguments) => verify::run(arguments, global, output),
            Command::Completions(arguments) => completions::run(arguments),
            Command::Worker(arguments) => {
                arguments.start();
                crate::worker::run().map(|()| Exit::Done)
            }
            Command::PeerJob(arguments) => {
                remote::serve::run(arguments, global).map(|()| Exit::Done)
            }
            Command::Gateway => crate::gateway::run().map(|()| Exit::Done),
            Command::JobWorker => crate::job_worker::run().map(|()| Exit::Done),
            Command::CompileWorker => crate::compile::worker().map(|()| Exit::Done),
            Command::WallProbe(arguments) => sandbox::probe(arguments, output),
        }
    }
}
