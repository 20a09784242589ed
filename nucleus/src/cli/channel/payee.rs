//! The process that is paid by one other machine: it takes vouchers, lends what they allow to the channel's
//! account, signs bills over what was paid out of it, and claims at the ledger.
//!
//! It runs nothing itself. Jobs of that machine name the channel, and spend from its account.

use std::fs::File;
use std::io::BufReader;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use cell_abi::{AccountId, NanoAtp};
use cell_channel::{
    ChannelError, Close, Funded, LedgerAt, Open, Payee, Quote, Reason, Signed, Standing, Voucher,
};
use cell_host::Sandbox;
use cell_ledger::{ContentHash, signed};
use cell_peer::tunnel::now_s;
use clap::Args;
use ed25519_dalek::SigningKey;
use tokio::signal::unix::{SignalKind, signal};

use super::books::Books;
use super::store::{Kept, Side, Store};
use super::wire::{self, LEAVES_MAX, ToEscrow, ToPayee, ToPayer};
use super::{escrow, hot_key};
use crate::bank::Bank;
use crate::cli::{Exit, Failure, Global};
use crate::config::Config;
use crate::home::Home;
use crate::link::Link;

/// The least deposit, in nano-ATP: what an entry in a ledger is worth, many times over.
const DEPOSIT_NANO_MIN: u64 = 1_000_000;
/// How long a quote is good for.
const QUOTE_S: u64 = 300;
/// How often bills are signed while work goes on.
const BILL_EVERY: Duration = Duration::from_millis(100);
/// How long a payer has for its last word when the nucleus goes down and its work has ended.
const LAST_WORD_TIME: Duration = Duration::from_secs(1);
/// How long work of a payer that is gone may take to end.
pub(super) const LAST_WORK_MAX: Duration = Duration::from_secs(15);
/// How long a payer may leave its bills unread.
pub(super) const SEND_TIME_MAX: Duration = Duration::from_secs(20);
/// How long a payer may be silent before its channel is there.
const SILENCE_MAX: Duration = Duration::from_secs(20);

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Who pays.
    payer: String,
}

/// Serves the machine at standard input, which is a socket.
pub(crate) fn serve(arguments: &Arguments, global: &Global) -> anyhow::Result<()> {
    let socket = Link::session_of_child()?;
    socket.set_write_timeout(Some(SEND_TIME_MAX))?;
    let home = global.home()?;
    let mut teller = Teller {
        peer: AccountId::parse(&arguments.payer)?,
        ledgers: Config::read(&home)?.peers.ledgers()?,
        store: Store::open(&home)?,
        bank: Bank::open(&home)?,
        key: home.key()?,
        home,
        to: socket.try_clone()?,
        live: None,
    };
    let (from, down) = listen(socket)?;
    let _signals = hear_of_the_end(down)?;
    let (began, mut going_down) = (Instant::now(), None::<Instant>);
    loop {
        // Jobs end first, and a payer that is quick closes itself.
        if going_down.is_some_and(|since| since.elapsed() > LAST_WORD_TIME) && teller.is_idle()? {
            break;
        }
        let heard = match from.recv_timeout(BILL_EVERY) {
            Ok(Heard::Message(message)) => teller.hear(*message),
            Ok(Heard::Down) => {
                going_down.get_or_insert_with(Instant::now);
                Ok(())
            }
            Err(RecvTimeoutError::Timeout)
                if teller.live.is_none() && began.elapsed() > SILENCE_MAX =>
            {
                break;
            }
            Err(RecvTimeoutError::Timeout) => teller.bill(Reason::Slice).map(drop),
            Ok(Heard::Gone) | Err(RecvTimeoutError::Disconnected) => break,
        };
        if let Err(error) = heard
            && !teller.refuse(error)?
        {
            break;
        }
        if teller.live.as_ref().is_some_and(|live| live.is_closed) {
            return Ok(());
        }
    }
    teller.leave()
}

/// Reads what comes on a thread of its own; the end of the connection is the end of the queue.
fn listen(socket: UnixStream) -> anyhow::Result<(Receiver<Heard>, SyncSender<Heard>)> {
    let (send, receive) = sync_channel(16);
    let down = send.clone();
    thread::Builder::new().name("payer".into()).spawn(move || {
        let mut from = BufReader::new(socket);
        while let Ok(Some(message)) = wire::read(&mut from) {
            if send.send(Heard::Message(Box::new(message))).is_err() {
                return;
            }
        }
        // Where nobody hears it this process ends anyway.
        let _ = send.send(Heard::Gone);
    })?;
    Ok((receive, down))
}

/// Passes on that the nucleus goes down, for as long as the runtime lives.
fn hear_of_the_end(down: SyncSender<Heard>) -> anyhow::Result<tokio::runtime::Runtime> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let mut terminations = {
        let _entered = runtime.enter();
        signal(SignalKind::terminate())?
    };
    runtime.spawn(async move {
        while terminations.recv().await.is_some() {
            let _ = down.try_send(Heard::Down);
        }
    });
    Ok(runtime)
}

/// What the teller waits for.
enum Heard {
    Message(Box<ToPayee>),
    /// The payer hung up.
    Gone,
    /// The nucleus goes down.
    Down,
}

struct Teller {
    home: Home,
    peer: AccountId,
    ledgers: Vec<LedgerAt>,
    store: Store,
    bank: Bank,
    key: SigningKey,
    to: UnixStream,
    live: Option<Live>,
}

/// The channel.
struct Live {
    payee: Payee,
    ledger: LedgerAt,
    books: Books,
    /// A last bill was asked for.
    is_last_wanted: bool,
    is_closed: bool,
    _lock: File,
}

impl Teller {
    fn hear(&mut self, message: ToPayee) -> anyhow::Result<()> {
        match message {
            ToPayee::Quote => {
                let quote = self.quote()?;
                wire::write(&mut self.to, &ToPayer::Quote(quote))
            }
            ToPayee::Open { quote, open, funded } => self.open(quote, open, funded),
            ToPayee::Channels => {
                let theirs = self.store.all()?.into_iter().filter(|kept| {
                    kept.open().body.payer == self.peer && kept.pays().is_none() && !kept.is_over()
                });
                let ids = theirs.map(|kept| kept.open().channel().to_string());
                wire::write(&mut self.to, &ToPayer::Channels(ids.collect()))
            }
            ToPayee::Resume { channel, leaves } => self.resume(&channel, leaves),
            ToPayee::Voucher(voucher) => self.voucher(voucher),
            ToPayee::Bill => {
                self.live()?.is_last_wanted = true;
                self.bill(Reason::Close).map(drop)
            }
            ToPayee::Close(close) => self.close(close),
        }
    }

    /// Tells the payer why something was not done; `false` if that cannot be gone on from.
    fn refuse(&mut self, error: anyhow::Error) -> anyhow::Result<bool> {
        let why = match error.downcast_ref::<ChannelError>() {
            Some(ChannelError::Ledger(_)) => None,
            Some(error) => Some(error.to_string()),
            None => error.downcast_ref::<Failure>().map(|failure| failure.message.clone()),
        };
        let Some(why) = why else {
            let why = "this machine failed".to_owned();
            let _ = wire::write(&mut self.to, &ToPayer::Refused(why));
            tracing::error!(error = %format!("{error:#}"), "serve a payer");
            return Ok(false);
        };
        Ok(wire::write(&mut self.to, &ToPayer::Refused(why)).is_ok())
    }

    fn quote(&self) -> anyhow::Result<Signed<Quote>> {
        if self.ledgers.is_empty() {
            let message = "this machine takes no channels: its nucleus.toml has no peers.ledgers";
            return Err(Failure::new(Exit::Refused, message).into());
        }
        let config = Config::read(&self.home)?;
        let quote = Quote {
            payee: signed::node(&self.key),
            payee_key: signed::node(&hot_key(&self.key, None)),
            ledgers: self.ledgers.clone(),
            engine_id: Sandbox::engine_id().to_string(),
            rates: config.prices.rates().0.to_vec(),
            deposit_nano_min: DEPOSIT_NANO_MIN,
            dispute_s_min: config.peers.claim_s,
            valid_until_s: now_s() + QUOTE_S,
        };
        Ok(Signed::new(quote, &self.key))
    }

    fn open(
        &mut self,
        quote: Signed<Quote>,
        open: Signed<Open>,
        funded: Signed<Funded>,
    ) -> anyhow::Result<()> {
        let terms = &open.body;
        if self.live.is_some()
            || terms.payer != self.peer
            || quote.body.payee != signed::node(&self.key)
        {
            return Err(ChannelError::Foreign("the opening").into());
        }
        let channel = open.channel();
        let ledger = quote.body.ledgers.iter().find(|ledger| ledger.key == terms.ledger).cloned();
        let ledger = ledger.ok_or(ChannelError::Terms("ledger"))?;
        let (payee, accept) =
            Payee::accept(quote, open, funded, hot_key(&self.key, None), now_s())?;
        let full =
            || Failure::new(Exit::Refused, "this machine has too many channels; try again later");
        if !self.store.make_room()? {
            return Err(full().into());
        }
        let lock = self.store.lock(channel)?.ok_or_else(full)?;
        if self.store.read(channel)?.is_some() {
            return Err(Failure::new(Exit::Refused, "this channel is open already").into());
        }
        let books = Books::open(&self.bank, channel)?;
        let live =
            Live { payee, ledger, books, is_last_wanted: false, is_closed: false, _lock: lock };
        self.live = Some(live);
        self.keep(None)?;
        wire::write(&mut self.to, &ToPayer::Accepted(accept))
    }

    fn resume(&mut self, channel: &str, leaves: u64) -> anyhow::Result<()> {
        let unknown = || Failure::new(Exit::Refused, "this machine does not know that channel");
        let channel = ContentHash::parse(channel).map_err(|_| unknown())?;
        let kept = self.store.read(channel)?.ok_or_else(unknown)?;
        let Kept { ledger, side: Side::IsPaid { record }, .. } = kept else {
            return Err(unknown().into());
        };
        if self.live.is_some() || record.open.body.payer != self.peer {
            return Err(unknown().into());
        }
        let busy = || {
            Failure::new(Exit::Refused, "the last session of that channel still ends; try again")
        };
        let lock = self.store.lock(channel)?.ok_or_else(busy)?;
        let books = Books::open(&self.bank, channel)?;
        let count = record.last.receipt.as_ref().map_or(0, |receipt| receipt.body.leaves);
        let (from, to) = (usize::try_from(leaves)?, usize::try_from(count)?);
        for part in books.leaves.get(from..to).unwrap_or_default().chunks(LEAVES_MAX) {
            wire::write(&mut self.to, &ToPayer::Leaves(part.to_vec()))?;
        }
        let (quote, open, last) = (record.quote.clone(), record.open.clone(), record.last.clone());
        wire::write(&mut self.to, &ToPayer::Shown { quote, open, last })?;
        let payee = Payee::resume(record, hot_key(&self.key, None));
        let live =
            Live { payee, ledger, books, is_last_wanted: false, is_closed: false, _lock: lock };
        self.live = Some(live);
        Ok(())
    }

    /// Whether nothing is under way.
    fn is_idle(&self) -> anyhow::Result<bool> {
        match &self.live {
            Some(live) => Ok(live.books.held(&self.bank)? == NanoAtp::ZERO),
            None => Ok(true),
        }
    }

    fn live(&mut self) -> anyhow::Result<&mut Live> {
        self.live.as_mut().ok_or_else(|| ChannelError::Unfunded.into())
    }

    /// A voucher is kept before its money can be spent.
    fn voucher(&mut self, voucher: Signed<Voucher>) -> anyhow::Result<()> {
        let live = self.live()?;
        live.payee.take(voucher, now_s())?;
        let ceiling = live.payee.ceiling();
        self.keep(None)?;
        let Self { live: Some(live), bank, to, .. } = self else { return Ok(()) };
        live.books.lend(bank, ceiling)?;
        wire::write(to, &ToPayer::Credited { ceiling_nano: ceiling.0 })
    }

    /// Signs a bill over what was paid since the last one; `false` if work is still under way.
    fn bill(&mut self, reason: Reason) -> anyhow::Result<bool> {
        let Self { live: Some(live), bank, .. } = self else { return Ok(true) };
        live.books.read(bank)?;
        let is_idle = live.books.held(bank)? == NanoAtp::ZERO;
        let is_last = is_idle && live.is_last_wanted;
        let billed = |live: &Live| {
            let receipt = live.payee.record().last.receipt.as_ref();
            usize::try_from(receipt.map_or(0, |receipt| receipt.body.leaves)).unwrap_or(usize::MAX)
        };
        loop {
            let Self { live: Some(live), .. } = self else { return Ok(true) };
            let new = live.books.leaves.get(billed(live)..).unwrap_or_default();
            let (part, rest) = new.split_at(new.len().min(LEAVES_MAX));
            let (part, is_rest) = (part.to_vec(), !rest.is_empty());
            let is_last = is_last && !is_rest;
            if part.is_empty() && !is_last {
                return Ok(is_idle);
            }
            let receipt = match part.is_empty() {
                // There is nothing new, but the payer waits for a word.
                true => live.payee.record().last.receipt.clone(),
                false => {
                    let reason = if is_last { Reason::Close } else { reason };
                    Some(live.payee.bill(&part, reason)?.clone())
                }
            };
            live.is_last_wanted &= !is_last;
            self.keep(None)?;
            // A payer that is gone is billed all the same, at the ledger.
            let _ = wire::write(&mut self.to, &ToPayer::Leaves(part));
            let message = match receipt {
                Some(receipt) => ToPayer::Bill { receipt, is_last },
                None => ToPayer::Refused("there is nothing to bill".into()),
            };
            let _ = wire::write(&mut self.to, &message);
            if !is_rest {
                return Ok(is_idle);
            }
        }
    }

    fn close(&mut self, close: Signed<Close>) -> anyhow::Result<()> {
        let live = self.live()?;
        let closed = live.payee.close(close)?;
        let (open, ledger) = (live.payee.record().open.clone(), live.ledger.clone());
        let standing = escrow::standing(&self.home, &ledger, ToEscrow::Close { open, closed })?;
        self.keep(Some(standing))?;
        let Self { live: Some(live), bank, .. } = self else { return Ok(()) };
        live.books.give_back(bank)?;
        live.is_closed = true;
        wire::write(&mut self.to, &ToPayer::Closed(standing))
    }

    /// The payer is gone: what is under way ends with its own connection, is billed, and claimed.
    fn leave(&mut self) -> anyhow::Result<()> {
        let began = Instant::now();
        while !self.bill(Reason::Preempted)? && began.elapsed() < LAST_WORK_MAX {
            thread::sleep(BILL_EVERY);
        }
        let Some(live) = &mut self.live else { return Ok(()) };
        live.books.give_back(&self.bank)?;
        let ledger = live.ledger.clone();
        if let Some(claim) = live.payee.claim() {
            let standing = escrow::standing(&self.home, &ledger, ToEscrow::Claim(claim));
            self.keep(Some(standing.context("claim; it is tried again later")?))?;
        }
        Ok(())
    }

    fn keep(&self, standing: Option<Standing>) -> anyhow::Result<()> {
        let Some(live) = &self.live else { return Ok(()) };
        let side = Side::IsPaid { record: live.payee.record().clone() };
        self.store.write(&Kept { ledger: live.ledger.clone(), side, standing })
    }
}

/// Bills and claims what was done for every channel that nobody works with, if it was not paid yet.
pub(super) fn claim_all(
    home: &Home,
) -> anyhow::Result<Vec<(ContentHash, anyhow::Result<Standing>)>> {
    let (store, bank, mut told) = (Store::open(home)?, Bank::open(home)?, Vec::new());
    for kept in store.all()? {
        if matches!(kept.side, Side::IsPaid { .. }) && !kept.is_over() {
            let channel = kept.open().channel();
            let Some(_lock) = store.lock(channel)? else { continue };
            // It may have been worked with until now.
            let Some(kept) = store.read(channel)? else { continue };
            if let Some(standing) = claim_one(home, &store, &bank, kept).transpose() {
                told.push((channel, standing));
            }
        }
    }
    Ok(told)
}

/// `None` if there is nothing to claim.
fn claim_one(
    home: &Home,
    store: &Store,
    bank: &Bank,
    kept: Kept,
) -> anyhow::Result<Option<Standing>> {
    let Kept { ledger, side: Side::IsPaid { record }, standing } = kept else { return Ok(None) };
    let open = record.open.clone();
    let mut payee = Payee::resume(record, hot_key(&home.key()?, None));
    let mut books = Books::open(bank, payee.channel())?;
    if books.held(bank)? > NanoAtp::ZERO {
        return Ok(None);
    }
    let billed = payee.record().last.receipt.as_ref().map_or(0, |receipt| receipt.body.leaves);
    let new = books.leaves.get(usize::try_from(billed)?..).unwrap_or_default();
    if !new.is_empty() {
        payee.bill(new, Reason::Preempted)?;
    }
    let keep = |standing| {
        let side = Side::IsPaid { record: payee.record().clone() };
        store.write(&Kept { ledger: ledger.clone(), side, standing })
    };
    keep(standing)?;
    books.give_back(bank)?;
    let paid = standing.map_or(0, |standing| standing.paid_nano);
    let is_unpaid = payee.charge().0 > paid;
    let is_late = now_s() > open.body.expires_s.saturating_add(open.body.dispute_s);
    let asked = match payee.claim().filter(|_| is_unpaid && !is_late) {
        Some(claim) => ToEscrow::Claim(claim),
        None if is_late => ToEscrow::Standing(open.clone()),
        None => return Ok(None),
    };
    let standing = escrow::standing(home, &ledger, asked).or_else(|error| {
        // It may be closed, or its time over; then it is not asked again.
        let now = escrow::standing(home, &ledger, ToEscrow::Standing(open))?;
        if now.is_open { Err(error) } else { Ok(now) }
    })?;
    keep(Some(standing))?;
    Ok(Some(standing))
}
