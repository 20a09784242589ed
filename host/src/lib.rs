//! The sandbox of Cell as a library: it compiles modules, keeps instances, meters them and serves their host calls.
//!
//! It knows no socket, no ledger and no command line: [`Sandbox`] can be embedded in any program,
//! as `examples/embed.rs` shows.
//!
//! The usual path: [`gate::inspect`] reads a module, [`Sandbox::compile`] makes an artefact,
//! [`Sandbox::load`] loads it, and then either a [`Cell`] answers calls through a [`Lease`]
//! or [`Job::run`] runs a command once.
//!
//! Every future here can be polled by any executor, as long as a tokio runtime is entered for
//! the timers that WASI waits on.

pub mod artefact;
pub mod cell;
pub mod cost;
pub mod elsewhere;
pub mod engine;
pub mod error;
pub mod gate;
pub mod job;
pub mod limits;
pub mod price;
pub mod rates;
pub mod services;
pub mod state;
pub mod stdio;

mod budget;
mod guest;
mod health;
mod host_calls;
mod instance;
mod meter;
mod record;
pub mod tape;
mod turns;
mod wasi;

pub use artefact::{ArtefactCache, Refused};
pub use cell::{Cell, CellOptions, Isolation};
pub use elsewhere::{Asking, Callee, RemoteCall, RemoteCell, RemoteReply};
pub use engine::{Allocation, Module, Sandbox};
pub use error::{CompileError, LoadError};
pub use gate::{GateError, ModuleInfo, ModuleKind};
pub use instance::{CallSpec, Lease, Outcome, Share};
pub use job::{Directory, Job, JobEnd, JobOutcome, JobTape, JobTrace};
pub use limits::Limits;
pub use meter::{Allowance, StopHandle};
pub use rates::{Rates, Taken};
pub use record::{CallRecord, Replay, Replayed};
pub use services::{LogLevel, NoServices, Resolving, Services};
pub use state::{MemoryState, StateError, StateStore};
pub use tape::Flaw;
pub use wasi::LIMITS as WASI_LIMITS;
