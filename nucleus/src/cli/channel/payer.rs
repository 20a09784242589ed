//! A channel from the side that pays: opened before work is sent, fed with vouchers while it runs, closed
//! when its last bill fits what was delivered.

use std::fs::File;
use std::io::BufReader;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use cell_abi::{AccountId, NanoAtp};
use cell_channel::{
    ChannelError, Funded, Leaf, LedgerAt, Open, Payer, Quote, Signed, Standing, Wish,
};
use cell_ledger::{ContentHash, signed};
use cell_peer::Request;
use cell_peer::tunnel::now_s;
use serde_json::json;

use super::store::{Kept, Side, Store};
use super::wire::{self, Opening, Shown, ToEscrow, ToPayee, ToPayer};
use super::{escrow, hot_key};
use crate::cli::output::escape;
use crate::cli::{Exit, Failure, Output};
use crate::home::{Home, random, replace_file};
use crate::peers::{Machine, Peers};

/// How long the other machine may take to answer, and to end what is under way and bill it.
pub(super) const ANSWER_TIME_MAX: Duration = Duration::from_secs(20);
/// How long a channel lasts.
const LIFE_S: u64 = 24 * 3600;
/// Leaves that a payer keeps until their bill comes.
pub(super) const GAP_LEAVES_MAX: usize = 65_536;

/// A channel that pays for what another machine does.
pub(crate) struct Money {
    line: Line,
    books: Books,
    slice: NanoAtp,
    /// Those of the next bill.
    leaves: Vec<Leaf>,
}

/// The channel, and what is kept of it.
struct Books {
    home: Home,
    payer: Payer,
    store: Store,
    ledger: LedgerAt,
    address: String,
    _lock: File,
}

/// What there is to pay with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Purse<'a> {
    /// The ledger: `here`, the name of a peer, or KEY@HOST:PORT.
    pub(crate) ledger: &'a str,
    /// The most that everything may cost.
    pub(crate) deposit: NanoAtp,
    /// The most that is at stake at a time.
    pub(crate) slice: NanoAtp,
}

impl Money {
    /// Has the deposit set aside, opens the channel, and agrees to a first slice.
    pub(crate) fn open(home: &Home, machine: &Machine, purse: Purse<'_>) -> anyhow::Result<Self> {
        let key = home.key()?;
        let owner = signed::node(&key);
        let mut line = Line::open(home, machine)?;
        line.say(&ToPayee::Quote)?;
        let quote = match line.hear()? {
            ToPayer::Quote(quote) if quote.body.payee == machine.peer => quote,
            other => return Err(unexpected(other)),
        };
        let ledger = choose(home, owner, purse.ledger, &quote.body)?;
        let salt = ContentHash::from_bytes(random()?);
        let wish = Wish {
            payer: owner,
            ledger: ledger.key,
            deposit: purse.deposit,
            salt,
            expires_s: now_s() + LIFE_S,
        };
        let payer = Payer::open(quote.clone(), &wish, &key, hot_key(&key, Some(salt)), now_s())?;
        let open = payer.record().open.clone();
        let books = Books::of(home, payer, ledger, machine.address.clone())?;
        if !books.store.make_room(true)? {
            bail!("there are too many open channels; close one with `cell channel close`");
        }
        // Kept before there is money in it: so that it is found again, whatever happens.
        books.keep(None)?;
        let funded = match escrow::fund(home, &books.ledger, &open) {
            Ok(funded) => funded,
            Err(error) => {
                // Where the ledger itself says that there is no deposit, there is nothing to find again.
                let asked = books.ask(ToEscrow::Standing(open));
                if asked.is_err_and(|error| error.downcast_ref::<Failure>().is_some()) {
                    books.store.forget(books.payer.channel());
                }
                return Err(error);
            }
        };
        let mut this = Self { line, books, slice: purse.slice, leaves: Vec::new() };
        match this.begin(quote, open, funded) {
            Ok(()) => Ok(this),
            Err(error) => Err(this.books.give_up(error)),
        }
    }

    /// Has the payee accept, and agrees to a first slice.
    fn begin(
        &mut self,
        quote: Signed<Quote>,
        open: Signed<Open>,
        funded: Signed<Funded>,
    ) -> anyhow::Result<()> {
        let opening = Opening { quote, open, funded: funded.clone() };
        self.line.say(&ToPayee::Open(Box::new(opening)))?;
        match self.line.hear()? {
            ToPayer::Accepted(accept) => self.books.payer.is_accepted(&accept, &funded)?,
            other => return Err(unexpected(other)),
        }
        self.agree()?;
        match self.line.hear()? {
            ToPayer::Credited { .. } => Ok(()),
            other => Err(unexpected(other)),
        }
    }

    /// Agrees to more, if it is time.
    fn agree(&mut self) -> anyhow::Result<()> {
        let Some(voucher) = self.books.payer.voucher(self.slice, now_s()) else { return Ok(()) };
        // Kept first: a lower ceiling is never signed again.
        self.books.keep(None)?;
        self.line.say(&ToPayee::Voucher(voucher))
    }

    /// Hears of bills and agrees to more on a thread of its own, until it is asked to end.
    pub(crate) fn pay(mut self) -> anyhow::Result<Paying> {
        let (ask, asked) = sync_channel::<()>(1);
        let channel = self.books.payer.channel();
        let thread = thread::Builder::new().name("money".into()).spawn(move || {
            let failed = loop {
                match self.line.heard.recv_timeout(Duration::from_millis(50)) {
                    Ok(Ok(message)) => {
                        if let Err(error) = self.take(message).and_then(|_| self.agree()) {
                            break Some(error);
                        }
                    }
                    Ok(Err(error)) => break Some(error),
                    Err(RecvTimeoutError::Disconnected) => {
                        break Some(anyhow::anyhow!("the line for the channel was lost"));
                    }
                    Err(RecvTimeoutError::Timeout) => {}
                }
                // Dropped, too, if the work has failed.
                if !matches!(asked.try_recv(), Err(TryRecvError::Empty)) {
                    break None;
                }
            };
            (self, failed)
        })?;
        Ok(Paying { channel, ask, thread })
    }

    /// Takes a message; `true` for the last bill.
    fn take(&mut self, message: ToPayer) -> anyhow::Result<bool> {
        match message {
            ToPayer::Leaves(leaves) if self.leaves.len() + leaves.len() <= GAP_LEAVES_MAX => {
                self.leaves.extend(leaves);
                Ok(false)
            }
            ToPayer::Bill { receipt, is_last } => {
                let leaves = std::mem::take(&mut self.leaves);
                let taken = self.books.payer.take(receipt, &leaves);
                taken.map_err(|error| caught(&self.books.home, error))?;
                self.books.keep(None)?;
                Ok(is_last)
            }
            ToPayer::Credited { .. } => Ok(false),
            other => Err(unexpected(other)),
        }
    }

    /// Has everything billed that is under way, and closes, if the bill is what `is_right` takes.
    fn settle(
        &mut self,
        is_right: impl FnOnce(NanoAtp) -> Result<(), String>,
    ) -> anyhow::Result<Standing> {
        self.line.say(&ToPayee::Bill)?;
        let began = Instant::now();
        loop {
            match self.line.hear()? {
                ToPayer::NothingToBill => break,
                message => {
                    if self.take(message)? {
                        break;
                    }
                }
            }
            if began.elapsed() > ANSWER_TIME_MAX {
                bail!("the other machine does not end its work");
            }
        }
        let charge = self.books.payer.charge();
        is_right(charge).map_err(|why| {
            Failure::new(Exit::NucleusFault, format!("{why}; no more is agreed to"))
        })?;
        let close = self.books.payer.close();
        self.line.say(&ToPayee::Close(close))?;
        loop {
            match self.line.hear()? {
                ToPayer::Closed(_) => break,
                ToPayer::Credited { .. } if began.elapsed() < ANSWER_TIME_MAX => {}
                other => return Err(unexpected(other)),
            }
        }
        // The ledger's word counts, not the payee's.
        let open = self.books.payer.record().open.clone();
        let standing = self.books.ask(ToEscrow::Standing(open))?;
        self.books.keep(Some(standing))?;
        if standing.paid_nano != charge.0 {
            bail!(
                "the ledger paid {} nano-ATP, and the bill says {}",
                standing.paid_nano,
                charge.0
            );
        }
        Ok(standing)
    }
}

impl Books {
    /// Locks the channel.
    fn of(home: &Home, payer: Payer, ledger: LedgerAt, address: String) -> anyhow::Result<Self> {
        let store = Store::open(home)?;
        let lock = store.lock(payer.channel())?;
        let lock = lock.context("another process works with that channel")?;
        Ok(Self { home: home.clone(), payer, store, ledger, address, _lock: lock })
    }

    fn ask(&self, asked: ToEscrow) -> anyhow::Result<Standing> {
        escrow::standing(&self.home, &self.ledger, asked)
    }

    /// Asks the ledger for the rest after something went wrong, and says when it comes back. The payee still
    /// has its time to claim what it did.
    fn give_up(&self, error: anyhow::Error) -> anyhow::Error {
        let rest = match self.request_close() {
            Ok(standing) => {
                let until_s = standing.expires_ms / 1000;
                format!("the rest of the deposit comes back at {until_s} (seconds since 1970)")
            }
            Err(again) => {
                let id = self.payer.channel().short();
                format!("`cell channel close {id}` asks for the rest: {again:#}")
            }
        };
        error.context(rest)
    }

    /// Asks the ledger for the rest, after the time in which the payee may still claim.
    fn request_close(&self) -> anyhow::Result<Standing> {
        let (open, request) = (self.payer.record().open.clone(), self.payer.request_close());
        let standing = self.ask(ToEscrow::RequestClose { open, request })?;
        self.keep(Some(standing))?;
        Ok(standing)
    }

    fn keep(&self, standing: Option<Standing>) -> anyhow::Result<()> {
        let side =
            Side::Pays { record: self.payer.record().clone(), address: self.address.clone() };
        self.store.write(&Kept { ledger: self.ledger.clone(), side, standing })
    }
}

/// A channel whose bills are being paid.
pub(crate) struct Paying {
    /// The channel's id.
    pub(crate) channel: ContentHash,
    ask: SyncSender<()>,
    thread: thread::JoinHandle<(Money, Option<anyhow::Error>)>,
}

impl Paying {
    /// Whether nothing more is agreed to: the channel's line was lost, or a bill was wrong.
    pub(crate) fn is_over(&self) -> bool {
        self.thread.is_finished()
    }

    /// Ends it. `is_right` says whether that is what everything should have cost.
    pub(crate) fn end(
        self,
        is_right: impl FnOnce(NanoAtp) -> Result<(), String>,
    ) -> anyhow::Result<Settled> {
        let channel = self.channel;
        // It may have ended by itself.
        let _ = self.ask.try_send(());
        let (mut money, failed) =
            self.thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?;
        let settled = match failed {
            None => money.settle(is_right),
            Some(error) => Err(error),
        };
        let settled = settled.map_err(|error| money.books.give_up(error));
        Ok(Settled { channel, standing: settled.context("settle the channel")? })
    }
}

/// A channel that was closed, and how it stands at its ledger.
pub(crate) struct Settled {
    channel: ContentHash,
    standing: Standing,
}

impl Settled {
    /// What was paid, for people.
    pub(crate) fn text(&self) -> String {
        let Self { channel, standing } = self;
        let (paid, deposit) = (NanoAtp(standing.paid_nano), NanoAtp(standing.deposit_nano));
        format!("channel {}: {paid} of {deposit} ATP were paid; the rest is back", channel.short())
    }

    /// Says what was paid.
    pub(crate) fn tell(&self, output: &Output) {
        let Self { channel, standing } = self;
        output.note(&self.text());
        if output.json() {
            let line = json!({ "channel": channel.to_string(), "standing": standing });
            output.machine_note(&line);
        }
    }
}

/// Goes on with a channel that was left, closes it with the payee if that answers, and at the ledger if not.
pub(super) fn close(home: &Home, kept: Kept, by_force: bool) -> anyhow::Result<Standing> {
    let Kept { ledger, side: Side::Pays { record, address }, .. } = kept else {
        bail!("this machine is paid by that channel; `cell channel claim` claims");
    };
    let (salt, peer) = (record.open.body.salt, record.open.body.payee);
    let payer = Payer::resume(record, hot_key(&home.key()?, Some(salt)));
    let books = Books::of(home, payer, ledger, address.clone())?;
    let asked = books.ask(ToEscrow::Standing(books.payer.record().open.clone()));
    if let Ok(now) = asked
        && !now.is_open
    {
        books.keep(Some(now))?;
        return Ok(now);
    }
    if by_force {
        return books.request_close();
    }
    let line = Line::open(home, &Machine { peer, address }).context(
        "the machine that is paid does not answer; `cell channel close --force` asks the ledger alone",
    )?;
    let mut money = Money { line, books, slice: NanoAtp::ZERO, leaves: Vec::new() };
    money.resync()?;
    money.settle(|_| Ok(()))
}

/// Keeps again what this home has lost of its channels with that machine, by what that has of them.
pub(super) fn recover(home: &Home, machine: &Machine) -> anyhow::Result<Vec<ContentHash>> {
    let (store, key, mut found) = (Store::open(home)?, home.key()?, Vec::new());
    let ask = |message: &ToPayee| {
        let mut line = Line::open(home, machine)?;
        line.say(message)?;
        anyhow::Ok(line)
    };
    let ids = match ask(&ToPayee::Channels)?.hear()? {
        ToPayer::Channels(ids) => ids,
        other => return Err(unexpected(other)),
    };
    for channel in ids {
        let known = ContentHash::parse(&channel)
            .context("the other machine names a channel that is none")?;
        if store.read(known)?.is_some() {
            continue;
        }
        let (line, mut leaves) = (ask(&ToPayee::Resume { channel, leaves: 0 })?, Vec::new());
        let Shown { quote, open, last } = loop {
            match line.hear()? {
                ToPayer::Leaves(more) if leaves.len() + more.len() <= GAP_LEAVES_MAX => {
                    leaves.extend(more)
                }
                ToPayer::Shown(shown) => break *shown,
                other => return Err(unexpected(other)),
            }
        };
        let ledger =
            quote.body.ledgers.iter().find(|ledger| ledger.key == open.body.ledger).cloned();
        let ledger = ledger.context("the quote does not name the channel's ledger")?;
        let hot = hot_key(&key, Some(open.body.salt));
        let mut payer = Payer::restore(quote, open, signed::node(&key), hot)?;
        payer.resync(last, &leaves)?;
        let side = Side::Pays { record: payer.record().clone(), address: machine.address.clone() };
        store.write(&Kept { ledger, side, standing: None })?;
        found.push(payer.channel());
    }
    Ok(found)
}

impl Money {
    /// Learns from the payee what this side does not know yet.
    fn resync(&mut self) -> anyhow::Result<()> {
        let channel = self.books.payer.channel().to_string();
        let leaves = self.books.payer.record().last.leaves();
        self.line.say(&ToPayee::Resume { channel, leaves })?;
        let began = Instant::now();
        while began.elapsed() < ANSWER_TIME_MAX {
            match self.line.hear()? {
                ToPayer::Shown(shown) => {
                    let leaves = std::mem::take(&mut self.leaves);
                    self.books.payer.resync(shown.last, &leaves)?;
                    return self.books.keep(None);
                }
                message => {
                    self.take(message)?;
                }
            }
        }
        bail!("the machine that is paid does not say what it has")
    }
}

/// The ledger that both accept.
fn choose(home: &Home, owner: AccountId, wanted: &str, quote: &Quote) -> anyhow::Result<LedgerAt> {
    let key = match wanted {
        "here" => owner,
        named => match Peers::read(home)?.find(named) {
            Some(peer) => AccountId::parse(&peer.key)?,
            None => Machine::parse(named, &Peers::default()).context("--pay-by")?.peer,
        },
    };
    let known = quote.ledgers.iter().find(|ledger| ledger.key == key).cloned();
    known.ok_or_else(|| {
        let theirs: Vec<_> = quote
            .ledgers
            .iter()
            .map(|ledger| format!("{}@{}", ledger.key, escape(&ledger.address)))
            .collect();
        let message = format!(
            "that machine does not take money of the ledger `{wanted}`; it takes {}",
            theirs.join(", ")
        );
        Failure::new(Exit::Usage, message).into()
    })
}

/// A line to the machine that is paid; hung up when it is dropped.
struct Line {
    to: UnixStream,
    heard: Receiver<anyhow::Result<ToPayer>>,
}

impl Line {
    /// What comes is read on a thread of its own.
    fn open(home: &Home, machine: &Machine) -> anyhow::Result<Self> {
        let to = super::connect(home, machine, &Request::Channel)?;
        to.set_write_timeout(Some(ANSWER_TIME_MAX))?;
        let (send, heard) = sync_channel(16);
        let mut from = BufReader::new(to.try_clone()?);
        thread::Builder::new().name("payee".into()).spawn(move || {
            loop {
                let message = match wire::read(&mut from) {
                    Ok(Some(message)) => Ok(message),
                    Ok(None) => return,
                    Err(error) => Err(error),
                };
                let is_over = message.is_err();
                if send.send(message).is_err() || is_over {
                    return;
                }
            }
        })?;
        Ok(Self { to, heard })
    }

    fn say(&mut self, message: &ToPayee) -> anyhow::Result<()> {
        wire::write(&mut self.to, message)
    }

    fn hear(&self) -> anyhow::Result<ToPayer> {
        match self.heard.recv_timeout(ANSWER_TIME_MAX) {
            Ok(message) => message,
            Err(RecvTimeoutError::Timeout) => bail!("the machine that is paid does not answer"),
            Err(RecvTimeoutError::Disconnected) => bail!("the machine that is paid hung up"),
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        // The thread that reads has the socket too.
        let _ = self.to.shutdown(Shutdown::Both);
    }
}

fn unexpected(message: ToPayer) -> anyhow::Error {
    match message {
        ToPayer::Refused(why) => {
            let message = format!("the machine that is paid: {}", escape(&why));
            Failure::new(Exit::Refused, message).into()
        }
        _ => anyhow::anyhow!("the machine that is paid says what was not asked"),
    }
}

/// Why a bill was not taken; what proves a cheat is kept, and said where.
fn caught(home: &Home, error: ChannelError) -> anyhow::Error {
    let ChannelError::Equivocation(proof) = &error else { return error.into() };
    let path = home.root().join(format!("cheat-{}.json", proof.open.channel().short()));
    let text = serde_json::to_string_pretty(proof).context("write the proof");
    let kept = match text.and_then(|text| replace_file(&path, text.as_bytes())) {
        Ok(()) => format!("the proof is in {}", path.display()),
        Err(failed) => format!("the proof could not be kept: {failed:#}"),
    };
    anyhow::Error::from(error).context(kept)
}
