//! The process that is paid by one other machine: it takes vouchers, lends what they allow to the channel's
//! account, signs bills over what was paid out of it, and claims at the ledger.
//!
//! It runs nothing itself. Jobs of that machine name the channel, and spend from its account.

use std::fs::File;
use std::io::BufReader;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use cell_abi::{AccountId, NanoAtp};
use cell_channel::{
    ChannelError, Close, LedgerAt, Payee, Quote, Reason, Signed, Standing, Voucher,
};
use cell_host::Sandbox;
use cell_ledger::{ContentHash, signed};
use cell_peer::tunnel::now_s;
use clap::Args;
use ed25519_dalek::SigningKey;

use super::books::{Books, within};
use super::store::{Kept, Side, Store};
use super::wire::{self, LEAVES_MAX, Opening, Shown, ToEscrow, ToPayee, ToPayer};
use super::{escrow, hot_key};
use crate::bank::Bank;
use crate::cli::{Exit, Failure, Global};
use crate::config::Config;
use crate::home::Home;
use crate::link::Link;
use crate::signals::{self, SignalKind};

/// Channels of one other machine that are open at once.
pub(super) const OPEN_PER_PEER_MAX: usize = 16;
/// Vouchers that raise a channel's ceiling: each raises it by that part of the deposit at least.
pub(super) const VOUCHERS_MAX: u64 = 10_000;
/// Loans to a channel's account and returns, which each take a row of the journal.
pub(super) const LOANS_MAX: u64 = 4 * VOUCHERS_MAX;
/// Messages of a payer that has no channel yet.
pub(super) const MESSAGES_BEFORE_MAX: usize = 64;
/// How long a payer may have a channel open and say nothing while nothing is done.
pub(super) const IDLE_TIME_MAX: Duration = Duration::from_secs(600);
/// How often the ledger is asked how a channel stands, at the latest; four times in its time for claims.
const LOOK_EVERY: Duration = Duration::from_secs(60);
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
pub(super) const SILENCE_MAX: Duration = Duration::from_secs(20);

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
        config: Config::read(&home)?,
        store: Store::open(&home)?,
        bank: Bank::open(&home)?,
        key: home.key()?,
        home,
        to: socket.try_clone()?,
        is_unheard: false,
        live: None,
    };
    let (from, is_down) = (listen(socket)?, Arc::new(AtomicBool::new(false)));
    let _signals = signals::hear(&[SignalKind::terminate()], {
        let is_down = Arc::clone(&is_down);
        move |_| is_down.store(true, Relaxed)
    })?;
    let (began, mut messages, mut going_down) = (Instant::now(), 0, None::<Instant>);
    let (mut heard_at, mut billed_at) = (began, began);
    loop {
        if is_down.load(Relaxed) {
            // Jobs end first, and a payer that is quick closes itself.
            let since = *going_down.get_or_insert_with(Instant::now);
            if since.elapsed() > LAST_WORD_TIME && teller.is_idle()? {
                break;
            }
        }
        let is_late = match teller.live {
            None => began.elapsed() > SILENCE_MAX || messages > MESSAGES_BEFORE_MAX,
            Some(_) => {
                teller.is_over() || heard_at.elapsed() > IDLE_TIME_MAX && teller.is_idle()?
            }
        };
        if is_late || teller.is_unheard {
            break;
        }
        let heard = match from.recv_timeout(BILL_EVERY) {
            Ok(Some(message)) => {
                (messages, heard_at) = (messages + 1, Instant::now());
                teller.hear(*message)
            }
            Ok(None) | Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => Ok(()),
        };
        // However much the payer says meanwhile.
        let heard = heard.and_then(|()| teller.look()).and_then(|()| {
            if billed_at.elapsed() < BILL_EVERY {
                return Ok(());
            }
            billed_at = Instant::now();
            teller.bill(Reason::Slice).map(drop)
        });
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

/// Reads what comes on a thread of its own; `None` is the end.
fn listen(socket: UnixStream) -> anyhow::Result<Receiver<Option<Box<ToPayee>>>> {
    let (send, receive) = sync_channel(16);
    thread::Builder::new().name("payer".into()).spawn(move || {
        let mut from = BufReader::new(socket);
        while let Ok(Some(message)) = wire::read(&mut from) {
            if send.send(Some(Box::new(message))).is_err() {
                return;
            }
        }
        // Where nobody hears it this process ends anyway.
        let _ = send.send(None);
    })?;
    Ok(receive)
}

struct Teller {
    home: Home,
    config: Config,
    peer: AccountId,
    store: Store,
    bank: Bank,
    key: SigningKey,
    to: UnixStream,
    /// The payer has not taken what it was told.
    is_unheard: bool,
    live: Option<Live>,
}

/// The channel.
struct Live {
    payee: Payee,
    ledger: LedgerAt,
    books: Books,
    /// How the channel stood at its ledger when that was asked.
    standing: Standing,
    asked: Instant,
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
            ToPayee::Open(opening) => self.open(*opening),
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
        let Config { peers, prices, .. } = &self.config;
        if peers.ledgers.is_empty() {
            let message = "this machine takes no channels: its nucleus.toml has no peers.ledgers";
            return Err(Failure::new(Exit::Refused, message).into());
        }
        let ledger_at = |ledger: &cell_discovery::LedgerAt| LedgerAt {
            key: ledger.key,
            address: ledger.address.to_string(),
        };
        let quote = Quote {
            payee: signed::node(&self.key),
            payee_key: signed::node(&hot_key(&self.key, None)),
            ledgers: peers.ledgers.iter().map(ledger_at).collect(),
            engine_id: Sandbox::engine_id().to_string(),
            rates: prices.rates().0.to_vec(),
            deposit_nano_min: escrow::DEPOSIT_NANO_MIN,
            dispute_s_min: peers.claim_s,
            valid_until_s: now_s() + QUOTE_S,
        };
        Ok(Signed::new(quote, &self.key))
    }

    fn open(&mut self, opening: Opening) -> anyhow::Result<()> {
        let Opening { quote, open, funded } = opening;
        let terms = &open.body;
        if self.live.is_some()
            || terms.payer != self.peer
            || quote.body.payee != signed::node(&self.key)
        {
            return Err(ChannelError::Foreign("the opening").into());
        }
        let (channel, payer) = (open.channel(), terms.payer);
        let ledger = quote.body.ledgers.iter().find(|ledger| ledger.key == terms.ledger).cloned();
        let ledger = ledger.ok_or(ChannelError::Terms("ledger"))?;
        let (payee, accept) =
            Payee::accept(quote, open, funded, hot_key(&self.key, None), now_s())?;
        let full =
            || Failure::new(Exit::Refused, "this machine has too many channels; try again later");
        let of_payer = |kept: &&Kept| {
            kept.pays().is_none() && !kept.is_over() && kept.open().body.payer == payer
        };
        if self.store.all()?.iter().filter(of_payer).count() >= OPEN_PER_PEER_MAX
            || !self.store.make_room(false)?
        {
            return Err(full().into());
        }
        let lock = self.store.lock(channel)?.ok_or_else(full)?;
        if self.store.read(channel)?.is_some() {
            return Err(Failure::new(Exit::Refused, "this channel is open already").into());
        }
        // The ledger's word may be an old one: what counts is how it stands.
        let live = self.go_on(payee, ledger, lock)?;
        if live.is_ending() {
            return Err(ChannelError::Closed.into());
        }
        self.live = Some(live);
        self.keep()?;
        wire::write(&mut self.to, &ToPayer::Accepted(accept))
    }

    fn resume(&mut self, channel: &str, leaves: u64) -> anyhow::Result<()> {
        let unknown = || Failure::new(Exit::Refused, "this machine does not know that channel");
        let channel = ContentHash::parse(channel).map_err(|_| unknown())?;
        // Read once it is locked: until then another teller may sign.
        let is_theirs = |kept: &Kept| kept.pays().is_none() && kept.open().body.payer == self.peer;
        if self.live.is_some() || !self.store.read(channel)?.as_ref().is_some_and(is_theirs) {
            return Err(unknown().into());
        }
        let busy = || {
            Failure::new(Exit::Refused, "the last session of that channel still ends; try again")
        };
        let lock = self.store.lock(channel)?.ok_or_else(busy)?;
        let kept = self.store.read(channel)?.ok_or_else(unknown)?;
        let Kept { ledger, side: Side::IsPaid { record }, .. } = kept else {
            return Err(unknown().into());
        };
        let payee = Payee::resume(record, hot_key(&self.key, None));
        let live = self.go_on(payee, ledger, lock)?;
        let record = live.payee.record();
        let (from, to) = (usize::try_from(leaves)?, usize::try_from(record.last.leaves())?);
        for part in live.books.leaves.get(from..to).unwrap_or_default().chunks(LEAVES_MAX) {
            wire::write(&mut self.to, &ToPayer::Leaves(part.to_vec()))?;
        }
        let (quote, open, last) = (record.quote.clone(), record.open.clone(), record.last.clone());
        wire::write(&mut self.to, &ToPayer::Shown(Box::new(Shown { quote, open, last })))?;
        self.live = Some(live);
        Ok(())
    }

    fn go_on(&self, payee: Payee, ledger: LedgerAt, lock: File) -> anyhow::Result<Live> {
        let asked = ToEscrow::Standing(payee.record().open.clone());
        let standing = escrow::standing(&self.home, &ledger, asked)?;
        let books = Books::open(&self.bank, payee.channel())?;
        Ok(Live {
            payee,
            ledger,
            books,
            standing,
            asked: Instant::now(),
            is_last_wanted: false,
            is_closed: false,
            _lock: lock,
        })
    }

    /// Asks the ledger now and then how the channel stands, and claims meanwhile: a payer that asked for the
    /// rest behind this side's back is not worked for.
    fn look(&mut self) -> anyhow::Result<()> {
        let Some(live) = &mut self.live else { return Ok(()) };
        let claim_s = live.payee.record().open.body.dispute_s;
        if live.asked.elapsed() < LOOK_EVERY.min(Duration::from_millis(claim_s.saturating_mul(250)))
        {
            return Ok(());
        }
        live.asked = Instant::now();
        let is_unpaid = live.payee.charge().0 > live.standing.paid_nano && live.is_ending();
        let asked = match live.payee.claim().filter(|_| is_unpaid) {
            Some(claim) => ToEscrow::Claim(claim),
            None => ToEscrow::Standing(live.payee.record().open.clone()),
        };
        match escrow::standing(&self.home, &live.ledger, asked) {
            Ok(standing) => {
                live.standing = standing;
                if live.is_ending() {
                    // What has not begun does not begin.
                    live.books.give_back(&self.bank)?;
                }
                self.keep()
            }
            Err(error) => {
                tracing::warn!(error = %format!("{error:#}"), "ask how a channel stands");
                Ok(())
            }
        }
    }

    /// Whether nothing can be done for it any more.
    fn is_over(&self) -> bool {
        self.live.as_ref().is_some_and(|live| {
            !live.standing.is_open || now_s() > live.payee.record().open.body.expires_s
        })
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
        if live.is_ending() {
            return Err(ChannelError::Closed.into());
        }
        let (before, deposit) =
            (live.payee.ceiling().0, live.payee.record().open.body.deposit_nano);
        let (ceiling, step) = (voucher.body.ceiling_nano, deposit / VOUCHERS_MAX);
        if ceiling > before && ceiling < deposit && ceiling - before < step
            || live.books.moved > LOANS_MAX
        {
            let message = "a voucher has to allow more than that";
            return Err(Failure::new(Exit::Refused, message).into());
        }
        live.payee.take(voucher, now_s())?;
        let ceiling = live.payee.ceiling();
        self.keep()?;
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
        let billed =
            |live: &Live| usize::try_from(live.payee.record().last.leaves()).unwrap_or(usize::MAX);
        loop {
            let Self { live: Some(live), .. } = self else { return Ok(true) };
            let room = live.payee.ceiling().saturating_sub(live.payee.charge());
            let new = within(live.books.leaves.get(billed(live)..).unwrap_or_default(), room);
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
            self.keep()?;
            // A payer that is gone is billed all the same, at the ledger.
            self.is_unheard |= wire::write(&mut self.to, &ToPayer::Leaves(part)).is_err();
            let message = match receipt {
                Some(receipt) => ToPayer::Bill { receipt, is_last },
                None => ToPayer::NothingToBill,
            };
            self.is_unheard |= wire::write(&mut self.to, &message).is_err();
            if !is_rest {
                return Ok(is_idle);
            }
        }
    }

    fn close(&mut self, close: Signed<Close>) -> anyhow::Result<()> {
        let Self { live: Some(live), bank, .. } = self else {
            return Err(ChannelError::Unfunded.into());
        };
        // From here on nothing can begin; and what is under way has to be billed before.
        live.books.give_back(bank)?;
        if !self.is_idle()? {
            let message = "work is under way for this channel; ask for a last bill first";
            return Err(Failure::new(Exit::Refused, message).into());
        }
        self.bill(Reason::Close)?;
        let live = self.live()?;
        let closed = live.payee.close(close)?;
        let (open, ledger) = (live.payee.record().open.clone(), live.ledger.clone());
        let standing = escrow::standing(&self.home, &ledger, ToEscrow::Close { open, closed })?;
        let live = self.live()?;
        (live.standing, live.is_closed) = (standing, true);
        self.keep()?;
        wire::write(&mut self.to, &ToPayer::Closed(standing))
    }

    /// The payer is gone: what is under way ends with its own connection, is billed, and claimed.
    fn leave(&mut self) -> anyhow::Result<()> {
        let began = Instant::now();
        if let Some(live) = &mut self.live {
            live.books.give_back(&self.bank)?;
        }
        while !self.is_idle()? && began.elapsed() < LAST_WORK_MAX {
            thread::sleep(BILL_EVERY);
        }
        if let Err(error) = self.bill(Reason::Preempted) {
            tracing::error!(error = %format!("{error:#}"), "bill a channel's last work");
        }
        let Some(live) = &mut self.live else { return Ok(()) };
        live.books.give_back(&self.bank)?;
        if let Some(claim) = live.payee.claim() {
            let standing = escrow::standing(&self.home, &live.ledger, ToEscrow::Claim(claim));
            live.standing = standing.context("claim; it is tried again later")?;
        }
        self.keep()
    }

    fn keep(&self) -> anyhow::Result<()> {
        let Some(live) = &self.live else { return Ok(()) };
        let side = Side::IsPaid { record: live.payee.record().clone() };
        self.store.write(&Kept { ledger: live.ledger.clone(), side, standing: Some(live.standing) })
    }
}

impl Live {
    /// Whether its money goes back to the payer, or has gone.
    fn is_ending(&self) -> bool {
        let funded = &self.payee.record().funded.body;
        !self.standing.is_open || self.standing.expires_ms < funded.expires_ms
    }
}
