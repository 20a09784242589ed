//! How `cell call` comes to a cell: by its socket here, or over a session with a machine that runs it; and
//! who pays there, this home's account or a channel.

use std::time::Duration;

use anyhow::Context as _;
use cell_abi::{CellName, Fuel, NanoAtp};
use cell_client::{Client, Config, Error};
use cell_peer::Request;

use crate::cli::channel::{DEPOSIT_NANO_MIN, Money, Paying, Purse, Settled};
use crate::cli::{Exit, Failure};
use crate::home::Home;
use crate::manifest::Manifest;
use crate::peers::{Peers, Remote, SCHEME};

/// A connection to a cell, and what pays for what goes over it.
pub(super) struct Line {
    pub(super) client: Client,
    paying: Option<Paying>,
}

/// What is to be called, and within which bounds.
pub(super) struct Wanted<'a> {
    /// `cell://MACHINE` if another machine was named.
    pub(super) machine: Option<&'a str>,
    pub(super) cell: &'a str,
    pub(super) timeout: Duration,
    /// The most that the call may cost.
    pub(super) limit: Fuel,
    /// The ledger of a channel that pays.
    pub(super) pay_by: Option<&'a str>,
}

impl Wanted<'_> {
    /// Connects. The inner error is the cell's socket here.
    pub(super) fn connect(&self, home: &Home) -> anyhow::Result<Result<Line, Error>> {
        let peers = Peers::read(home)?;
        let remotes = match self.machine {
            Some(machine) => {
                let remote = Remote::parse(&format!("{machine}/{}", self.cell), &peers)
                    .map_err(|error| Failure::new(Exit::Usage, format!("{error:#}")))?;
                vec![Ok(remote)]
            }
            None => elsewhere(home, self.cell)
                .iter()
                .map(|named| Remote::of_manifest(named, self.cell, &peers))
                .collect(),
        };
        if remotes.is_empty() {
            if self.pay_by.is_some() {
                let message =
                    format!("--pay-by is for a cell of another machine: {SCHEME}MACHINE/CELL");
                return Err(Failure::new(Exit::Usage, message).into());
            }
            let client = Client::connect(home.cell_socket(self.cell), self.cell);
            return Ok(client.map(|client| Line { client, paying: None }));
        }
        let mut why = anyhow::anyhow!("no machine is named");
        for remote in remotes {
            match remote.and_then(|remote| self.dial(home, &remote)) {
                Ok(line) => return Ok(Ok(line)),
                // A channel may have been opened there, and what became of its deposit is to be known.
                Err(error) if self.pay_by.is_some() => return Err(error),
                Err(error) => why = error,
            }
        }
        Err(why)
    }

    fn dial(&self, home: &Home, remote: &Remote) -> anyhow::Result<Line> {
        let Remote { machine, cell } = remote;
        let Some(ledger) = self.pay_by else {
            let stream = remote.connect(home, self.timeout)?;
            let client = Client::from_stream(stream, cell.as_str(), Config::default())?;
            return Ok(Line { client, paying: None });
        };
        // One call is one slice: nobody can tell how much of it was done.
        let deposit = NanoAtp(self.limit.at_base_price().0.max(DEPOSIT_NANO_MIN));
        let purse = Purse { ledger, deposit, slice: deposit };
        let paying = Money::open(home, machine, purse).context("open a channel")?.pay()?;
        let request = Request::PaidCell(*paying.channel.as_bytes(), cell.clone());
        let connected = machine
            .connect(home, &request, self.timeout)
            .and_then(|stream| Ok(Client::from_stream(stream, cell.as_str(), Config::default())?));
        match connected {
            Ok(client) => Ok(Line { client, paying: Some(paying) }),
            Err(error) => {
                let settled = settle(paying, |charge| charge == NanoAtp::ZERO);
                Err(settled.err().map_or(error, |also| also))
            }
        }
    }
}

impl Line {
    /// Hangs up, and pays what the call cost; where that is not known, no more than its limit.
    pub(super) fn end(self, cost: Option<Fuel>, limit: Fuel) -> anyhow::Result<Option<Settled>> {
        let Self { client, paying } = self;
        drop(client);
        let Some(paying) = paying else { return Ok(None) };
        let most = cost.unwrap_or(limit).at_base_price();
        settle(paying, |charge| charge <= most).map(Some)
    }
}

fn settle(paying: Paying, is_right: impl Fn(NanoAtp) -> bool) -> anyhow::Result<Settled> {
    paying.end(|charge| match is_right(charge) {
        true => Ok(()),
        false => Err(format!("the channel is billed {charge} ATP, and the call cost less")),
    })
}

/// The machines that run a cell whose manifest here names some.
fn elsewhere(home: &Home, cell: &str) -> Vec<String> {
    // What is wrong with a manifest the nucleus says.
    CellName::parse(cell)
        .ok()
        .and_then(|name| Manifest::read(&home.cell(name.as_str())).ok())
        .map(|manifest| manifest.at)
        .unwrap_or_default()
}
