//! The ledger's end of channels: a process that answers one machine, and how a machine asks.

use std::io::BufReader;
use std::time::Duration;

use anyhow::{Context as _, bail};
use cell_abi::{AccountId, NanoAtp};
use cell_channel::{ChannelError, Escrow, Funded, LedgerAt, Open, Signed, Standing};
use cell_peer::Request;
use clap::Args;

use super::wire::{self, FromEscrow, ToEscrow};
use crate::bank::Bank;
use crate::cli::output::escape;
use crate::cli::{Exit, Failure, Global};
use crate::home::Home;
use crate::link::Link;
use crate::peers::Machine;

/// The least deposit, in nano-ATP: what an entry in a ledger is worth, many times over.
pub(crate) const DEPOSIT_NANO_MIN: u64 = 1_000_000;
/// How long a machine may be silent between two questions to a ledger, or a ledger before its answer.
pub(super) const SILENCE_MAX: Duration = Duration::from_secs(20);
/// Questions in one session.
pub(super) const QUESTIONS_MAX: usize = 64;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Who asks.
    peer: String,
}

/// Answers the machine at standard input, which is a socket.
pub(crate) fn serve(_: &Arguments, global: &Global) -> anyhow::Result<()> {
    let socket = Link::session_of_child()?;
    socket.set_read_timeout(Some(SILENCE_MAX))?;
    socket.set_write_timeout(Some(SILENCE_MAX))?;
    let home = global.home()?;
    let (bank, key) = (Bank::open(&home)?, home.key()?);
    let (mut from, mut to) = (BufReader::new(socket.try_clone()?), socket);
    for _ in 0..QUESTIONS_MAX {
        // Whoever asks nonsense, or nothing, is not told why: an honest machine does neither.
        let Ok(Some(asked)) = wire::read(&mut from) else { return Ok(()) };
        if wire::write(&mut to, &answer(&bank, &key, asked)).is_err() {
            return Ok(());
        }
    }
    Ok(())
}

fn answer(bank: &Bank, key: &ed25519_dalek::SigningKey, asked: ToEscrow) -> FromEscrow {
    let escrow = Escrow::new(&bank.ledger, key);
    let standing = match asked {
        ToEscrow::Fund(open) if open.body.deposit_nano < DEPOSIT_NANO_MIN => {
            let message = format!("a deposit has at least {} ATP", NanoAtp(DEPOSIT_NANO_MIN));
            return FromEscrow::Refused(message);
        }
        ToEscrow::Fund(open) => {
            let funded = escrow.fund(&open);
            return funded.map_or_else(|error| refused(&error), FromEscrow::Funded);
        }
        ToEscrow::Claim(claim) => escrow.claim(&claim),
        ToEscrow::Close { open, closed } => escrow.close(&open, &closed),
        ToEscrow::RequestClose { open, request } => escrow.request_close(&open, &request),
        ToEscrow::Standing(open) => escrow.standing(&open),
    };
    standing.map_or_else(|error| refused(&error), FromEscrow::Standing)
}

/// What a party may know of an error.
fn refused(error: &ChannelError) -> FromEscrow {
    match error {
        ChannelError::Ledger(error) if error.fault() == cell_abi::status::Fault::Host => {
            tracing::error!(%error, "the ledger of channels");
            FromEscrow::Unavailable
        }
        error => FromEscrow::Refused(error.to_string()),
    }
}

/// The ledger's word that the deposit is set aside.
pub(super) fn fund(
    home: &Home,
    at: &LedgerAt,
    open: &Signed<Open>,
) -> anyhow::Result<Signed<Funded>> {
    match ask(home, at, ToEscrow::Fund(open.clone()))? {
        FromEscrow::Funded(funded) if funded.is_by(at.key) => Ok(funded),
        _ => bail!("the ledger at {} gives an answer that is none", escape(&at.address)),
    }
}

/// Asks about a channel that is there.
pub(super) fn standing(home: &Home, at: &LedgerAt, asked: ToEscrow) -> anyhow::Result<Standing> {
    match ask(home, at, asked)? {
        FromEscrow::Standing(standing) => Ok(standing),
        _ => bail!("the ledger at {} gives an answer that is none", escape(&at.address)),
    }
}

/// Asks this home's ledger, or another machine's. A refusal is an error.
fn ask(home: &Home, at: &LedgerAt, asked: ToEscrow) -> anyhow::Result<FromEscrow> {
    let key = home.key()?;
    let answered = if AccountId::from_bytes(key.verifying_key().to_bytes()) == at.key {
        answer(&Bank::open(home)?, &key, asked)
    } else {
        let machine = Machine { peer: at.key, address: at.address.clone() };
        let mut socket = super::connect(home, &machine, &Request::Escrow)?;
        socket.set_read_timeout(Some(SILENCE_MAX))?;
        wire::write(&mut socket, &asked)?;
        let answered = wire::read(&mut BufReader::new(socket))?;
        answered.context("the ledger's machine hung up")?
    };
    match answered {
        FromEscrow::Unavailable => {
            bail!("the ledger at {} does not answer; try again later", escape(&at.address))
        }
        FromEscrow::Refused(why) => {
            let message = format!("the ledger at {}: {}", escape(&at.address), escape(&why));
            Err(Failure::new(Exit::Refused, message).into())
        }
        answered => Ok(answered),
    }
}
