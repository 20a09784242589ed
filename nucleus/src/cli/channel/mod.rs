//! Payment between machines whose owners do not know each other: `cell channel`, and the processes behind it.
//!
//! What is signed, and when, is in the crate `cell-channel`; here are its lines, its files, and its place in
//! this home's books.

use std::fmt::Write as _;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use cell_abi::{AccountId, NanoAtp};
use cell_ledger::ContentHash;
use cell_peer::Request;
use clap::Subcommand;
use ed25519_dalek::SigningKey;
use serde_json::json;

use self::store::{Kept, Side, Store};
use super::output::escape;
use super::remote::ask::DIAL_TIME_MAX;
use super::{Exit, Failure, Global, Output};
use crate::home::Home;
use crate::peers::{Machine, Peers};

mod books;
mod claim;
pub(crate) mod escrow;
pub(crate) mod payee;
pub(crate) mod payer;
mod store;
mod wire;

use books::account;
pub(crate) use escrow::DEPOSIT_NANO_MIN;
pub(crate) use limits::LIMITS;
pub(crate) use payer::{Money, Paying, Purse, Settled};

/// How often a machine is asked that is busy, and how long after.
const TRIES: u32 = 5;
const AGAIN_AFTER: Duration = Duration::from_millis(200);

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show this home's channels.
    List,
    /// Learn from a machine that is paid which channels this home has lost, so that they can be closed.
    Recover {
        /// Its name, or KEY@HOST:PORT.
        machine: String,
    },
    /// Claim what other machines owe for what this one did.
    Claim,
    /// Close a channel that this home pays by; the rest of its deposit comes back.
    Close {
        /// Its id, or how that begins.
        channel: String,
        /// Do not ask the machine that is paid: the rest comes back when its time to claim is over.
        #[arg(long)]
        force: bool,
    },
}

pub(crate) fn run(command: &Command, global: &Global, output: &Output) -> anyhow::Result<Exit> {
    let home = global.home()?;
    home.create()?;
    let store = Store::open(&home)?;
    match command {
        Command::List => list(&store.all()?, output),
        Command::Recover { machine } => {
            let machine = Machine::parse(machine, &Peers::read(&home)?)?;
            let found = payer::recover(&home, &machine)?;
            let ids: Vec<_> = found.iter().map(ToString::to_string).collect();
            let text = match ids.as_slice() {
                [] => "nothing was lost".into(),
                ids => format!("recovered:\n{}", ids.join("\n")),
            };
            output.result(&json!({ "recovered": ids }), &text);
        }
        Command::Claim => {
            let mut exit = Exit::Done;
            let (mut text, mut rows) = (String::new(), Vec::new());
            for (channel, claimed) in claim::claim_all(&home)? {
                let (told, row) = match claimed {
                    Ok(standing) => {
                        let paid = NanoAtp(standing.paid_nano);
                        (
                            format!("{paid} ATP are paid"),
                            json!({ "channel": channel.to_string(), "standing": standing }),
                        )
                    }
                    Err(error) => {
                        exit = Exit::Failed;
                        let why = format!("{error:#}");
                        (why.clone(), json!({ "channel": channel.to_string(), "error": why }))
                    }
                };
                // Writing to a String cannot fail.
                let _ = writeln!(text, "{}: {told}", channel.short());
                rows.push(row);
            }
            let text = if rows.is_empty() { "nothing to claim".into() } else { text };
            output.result(&json!({ "claimed": rows }), text.trim_end());
            return Ok(exit);
        }
        Command::Close { channel, force } => {
            let all = store.all()?;
            let mut fits = all
                .into_iter()
                .filter(|kept| kept.open().channel().to_string().starts_with(channel));
            let (Some(kept), None) = (fits.next(), fits.next()) else {
                let message = format!(
                    "`{}` is not how one channel's id begins; see `cell channel list`",
                    escape(channel)
                );
                return Err(Failure::new(Exit::Failed, message).into());
            };
            let standing = payer::close(&home, kept, *force)?;
            let (paid, deposit) = (NanoAtp(standing.paid_nano), NanoAtp(standing.deposit_nano));
            let text = match standing.is_open {
                false => format!("closed: {paid} of {deposit} ATP were paid"),
                true => format!(
                    "{paid} of {deposit} ATP are paid; the rest comes back at {} (seconds since 1970)",
                    standing.expires_ms / 1000
                ),
            };
            output.result(&json!(standing), &text);
        }
    }
    Ok(Exit::Done)
}

fn list(all: &[Kept], output: &Output) {
    let (mut text, mut rows) = (String::new(), Vec::new());
    for kept in all {
        let terms = &kept.open().body;
        let (side, other) = match &kept.side {
            Side::Pays { .. } => ("pays", terms.payee),
            Side::IsPaid { .. } => ("is paid by", terms.payer),
        };
        let (charge, ceiling) = kept.charge_and_ceiling();
        let state = match kept.standing {
            Some(standing) if !standing.is_open => "over",
            Some(_) => "open",
            None => "not asked",
        };
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{} {side} {}: {} of {} ATP agreed to, deposit {} ATP, at the ledger {state}",
            kept.open().channel().short(),
            other.short(),
            NanoAtp(charge),
            NanoAtp(ceiling),
            terms.deposit(),
        );
        rows.push(json!({
            "channel": kept.open().channel().to_string(),
            "payer": terms.payer.to_string(),
            "payee": terms.payee.to_string(),
            "ledger": kept.ledger,
            "pays": kept.pays().is_some(),
            "charge_nano_atp": charge,
            "ceiling_nano_atp": ceiling,
            "deposit_nano_atp": terms.deposit_nano,
            "expires_s": terms.expires_s,
            "standing": kept.standing,
        }));
    }
    let text = if rows.is_empty() { "no channels".into() } else { text };
    output.result(&json!({ "channels": rows }), text.trim_end());
}

/// Connects to a machine; one that is busy is asked again a few times.
fn connect(home: &Home, machine: &Machine, request: &Request) -> anyhow::Result<UnixStream> {
    let mut tries = 1;
    loop {
        match machine.connect(home, request, DIAL_TIME_MAX) {
            Err(_) if tries < TRIES => thread::sleep(AGAIN_AFTER * tries),
            result => return result,
        }
        tries += 1;
    }
}

/// The account that a peer's work spends from, if that channel is its own and open here.
pub(crate) fn account_of(home: &Home, peer: AccountId, channel: &str) -> anyhow::Result<AccountId> {
    let unknown = || Failure::new(Exit::Refused, "this machine does not know that channel");
    let channel = ContentHash::parse(channel).map_err(|_| unknown())?;
    let kept = Store::open(home)?.read(channel)?.ok_or_else(unknown)?;
    let is_theirs = kept.open().body.payer == peer && matches!(kept.side, Side::IsPaid { .. });
    if is_theirs && !kept.is_over() { Ok(account(channel)) } else { Err(unknown().into()) }
}

/// The key that signs for a channel: it follows from the identity, so it is never lost alone. A payer has one
/// for each channel, named by its salt; a payee one for all.
fn hot_key(identity: &SigningKey, salt: Option<ContentHash>) -> SigningKey {
    let context = if salt.is_some() { "cell/atp/v1/payer-key" } else { "cell/atp/v1/payee-key" };
    let mut hasher = blake3::Hasher::new_derive_key(context);
    hasher.update(identity.as_bytes());
    if let Some(salt) = salt {
        hasher.update(salt.as_bytes());
    }
    SigningKey::from_bytes(hasher.finalize().as_bytes())
}

mod limits {
    //! This room's limits, as rows of the one table.

    cell_abi::limits! {
        crate::cli::channel::wire {
            /// Longest message about a channel, in bytes.
            ///
            /// The session ends; what was signed before holds.
            LINE_BYTES_MAX: usize;
            /// Payments for work in one such message.
            ///
            /// More become more messages, with a bill each.
            LEAVES_MAX: usize;
        }
        crate::cli::channel::store {
            /// Largest file about a channel, in bytes.
            ///
            /// It is named, and left alone.
            FILE_BYTES_MAX: u64;
            /// Channels that a home keeps.
            ///
            /// One that is over makes room; where none is, no other one is opened.
            KEPT_MAX: usize;
        }
        crate::cli::channel::escrow {
            /// How long a machine may be silent between two questions to a ledger, or a ledger before its answer.
            ///
            /// The session is closed; what was asked can be asked again, with the same answer.
            SILENCE_MAX: Duration;
            /// Questions in one session with a ledger.
            ///
            /// The session is closed; another one can be opened.
            QUESTIONS_MAX: usize;
        }
        crate::cli::channel::payee {
            /// Channels of one other machine that are open at once.
            ///
            /// One more is refused.
            OPEN_PER_PEER_MAX: usize;
            /// Vouchers that raise the ceiling of one channel.
            ///
            /// One that raises it by a smaller part of the deposit is refused.
            VOUCHERS_MAX: u64;
            /// Loans to the account of one channel, and returns from it.
            ///
            /// Further vouchers are refused.
            LOANS_MAX: u64;
            /// Messages of a payer that has opened no channel yet.
            ///
            /// The session is closed.
            MESSAGES_BEFORE_MAX: usize;
            /// How long a payer may take to open one.
            ///
            /// The session is closed.
            SILENCE_MAX: Duration;
            /// How long a payer may have a channel open in which nothing is said and done.
            ///
            /// The session is closed, and what was done is claimed.
            IDLE_TIME_MAX: Duration;
            /// How long work of a payer that is gone may take to end.
            ///
            /// What is done after that is billed by the next `cell channel claim`.
            LAST_WORK_MAX: Duration;
            /// How long a payer may leave its bills unread.
            ///
            /// The session is closed, and what was done is claimed.
            SEND_TIME_MAX: Duration;
        }
        crate::cli::channel::payer {
            /// How long the machine that is paid may take to answer, or to end what is under way and bill it.
            ///
            /// The payer asks the ledger to close.
            ANSWER_TIME_MAX: Duration;
            /// Payments for work that a payer keeps until their bill comes.
            ///
            /// It agrees to nothing more.
            GAP_LEAVES_MAX: usize;
        }
    }
}
