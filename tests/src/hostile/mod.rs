//! The hostile suite: modules, programs, clients and files that mean harm, and what each is answered.
//!
//! A [`Row`] is one attack: the class it belongs to, how it is driven, the exact answer and bill a
//! correct host gives, and how far the worker's memory may grow meanwhile. [`run`] drives rows one
//! after another against one nucleus, while a neighbour calls a cell of its own without a pause; the
//! neighbour must not notice anything, and the worker must be the same process from start to end.
//!
//! The classes, by letter: A processor time, B compiling and loading, C accounts, D memory and other
//! things of the host, E logs, F stacks and traps, G files and networks, H buffers, I transport.
//! `CELL_HOSTILE=A1` or a part of a name runs only the rows that fit.
#![allow(clippy::print_stdout, reason = "the table is what the suite is for")]

mod accounts;
mod buffers;
mod cpu;
mod files;
mod found;
mod guest;
mod job;
mod load;
mod logs;
mod memory;
mod places;
mod runner;
mod traps;
mod wasi;
mod wire;
mod world;

pub use runner::run;
pub use world::World;

use cell_host::price::CALL;
use guest::Guest;
use job::Job;

/// How far a row may let the worker's memory grow, unless it says otherwise, in MiB.
const GROWTH_MIB_MAX: u64 = 16;

/// One attack and its answer.
pub struct Row {
    class: &'static str,
    name: &'static str,
    act: Act,
    /// What is answered; `*` stands for any text.
    answer: &'static str,
    bill: Bill,
    growth_mib_max: u64,
}

/// What an attack costs whom it is charged to, in fuel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bill {
    /// Nothing ran, so nothing is charged.
    Nothing,
    /// Exactly the limit of the call or job.
    Limit,
    /// Exactly this much.
    Exactly(u64),
    /// At least the first and at most the second.
    Within(u64, u64),
    /// There is nothing that could be charged.
    None,
}

impl Bill {
    /// What any call costs, and at most so much more.
    pub const fn call(more: u64) -> Self {
        Self::Within(CALL, CALL + more)
    }
}

/// What came of an attack.
#[derive(Default)]
pub struct Seen {
    /// The answer in words.
    pub answer: String,
    /// What it cost; `None` if nothing could be charged.
    pub fuel: Option<u64>,
    /// The most it was allowed to cost.
    pub limit: Option<u64>,
    /// Largest memory of a process of the attack's own, in KiB.
    pub peak_kib: Option<u64>,
    /// Looked at when all other rows are through: what takes a long wait and nothing else.
    pub later: Option<Attack>,
}

/// What a row does to its world.
pub type Attack = Box<dyn FnOnce(&World) -> Seen + Send>;

enum Act {
    /// Deploy this cell and call it.
    Call(Call),
    /// Deploy these bytes as a cell's module.
    Deploy(Box<dyn FnOnce() -> Vec<u8> + Send>),
    /// `cell run` this program.
    Job(Job),
    /// Whatever this does.
    Other(Attack),
}

/// A cell and how it is called.
#[derive(Debug, Clone)]
struct Call {
    text: String,
    manifest: &'static str,
    request: Vec<u8>,
    fuel: u64,
    times: usize,
}

impl Row {
    fn new(
        class: &'static str,
        name: &'static str,
        act: impl Into<Act>,
        answer: &'static str,
        bill: Bill,
    ) -> Self {
        Self { class, name, act: act.into(), answer, bill, growth_mib_max: GROWTH_MIB_MAX }
    }

    /// A row whose attack is a piece of code.
    pub fn of(
        class: &'static str,
        name: &'static str,
        act: impl FnOnce(&World) -> Seen + Send + 'static,
        answer: &'static str,
        bill: Bill,
    ) -> Self {
        Self::new(class, name, Act::Other(Box::new(act)), answer, bill)
    }

    /// The worker may grow by this much.
    const fn growth(mut self, mib: u64) -> Self {
        self.growth_mib_max = mib;
        self
    }
}

impl std::fmt::Debug for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { class, name, answer, bill, .. } = self;
        f.debug_struct("Row")
            .field("class", class)
            .field("name", name)
            .field("answer", answer)
            .field("bill", bill)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { answer, fuel, limit, .. } = self;
        f.debug_struct("Seen")
            .field("answer", answer)
            .field("fuel", fuel)
            .field("limit", limit)
            .finish_non_exhaustive()
    }
}

impl Seen {
    /// An answer in words, with nothing to pay.
    pub fn said(answer: impl Into<String>) -> Self {
        Self { answer: answer.into(), ..Self::default() }
    }

    /// An answer in words, and what it cost.
    pub fn charged(answer: impl Into<String>, fuel: u64) -> Self {
        Self { fuel: Some(fuel), ..Self::said(answer) }
    }
}

impl Call {
    const fn manifest(mut self, lines: &'static str) -> Self {
        self.manifest = lines;
        self
    }

    fn request(mut self, bytes: &[u8]) -> Self {
        self.request = bytes.to_vec();
        self
    }

    /// The most each call may burn.
    const fn fuel(mut self, fuel: u64) -> Self {
        self.fuel = fuel;
        self
    }

    /// Calls again and again; the answers are joined.
    const fn times(mut self, times: usize) -> Self {
        self.times = times;
        self
    }
}

impl Guest {
    /// Deployed, and called once with an empty request and 0.1 ATP.
    fn call(&self) -> Call {
        Call { text: self.text(), manifest: "", request: Vec::new(), fuel: 100_000_000, times: 1 }
    }

    /// Deployed only.
    fn deploy(&self) -> Act {
        let text = self.text();
        Act::Deploy(Box::new(move || crate::wat::compile(&text)))
    }
}

impl From<Call> for Act {
    fn from(call: Call) -> Self {
        Self::Call(call)
    }
}

impl From<Job> for Act {
    fn from(job: Job) -> Self {
        Self::Job(job)
    }
}

/// A module that is made when its turn comes.
fn deploy(make: impl FnOnce() -> Vec<u8> + Send + 'static) -> Act {
    Act::Deploy(Box::new(make))
}

/// Every row, in the order of their classes.
pub fn rows() -> Vec<Row> {
    let all = [
        cpu::rows(),
        load::rows(),
        places::rows(),
        accounts::rows(),
        memory::rows(),
        logs::rows(),
        traps::rows(),
        files::rows(),
        wasi::rows(),
        buffers::rows(),
        wire::rows(),
        found::rows(),
    ];
    all.into_iter().flatten().collect()
}
