//! A channel from the side that pays: opened before work is sent, fed with vouchers while it runs, closed
//! when its last bill fits what was delivered.

use std::fs::File;
use std::io::{BufReader, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
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

use super::store::{Kept, Side, Store};
use super::wire::{self, Opening, Shown, ToEscrow, ToPayee, ToPayer};
use super::{escrow, hot_key};
use crate::cli::output::escape;
use crate::cli::{Exit, Failure};
use crate::home::Home;
use crate::peers::{Machine, Peers};

/// How long the other machine may take to answer, and to end what is under way and bill it.
pub(super) const ANSWER_TIME_MAX: Duration = Duration::from_secs(20);
/// How long a channel lasts.
const LIFE_S: u64 = 24 * 3600;
/// Leaves that a payer keeps until their bill comes.
pub(super) const GAP_LEAVES_MAX: usize = 65_536;

/// A channel that pays for what another machine does.
pub(crate) struct Money {
    home: Home,
    ledger: LedgerAt,
    line: Line,
    books: Arc<Mutex<Books>>,
    _lock: File,
}

/// What the thread that hears of bills shares with who opened the channel.
struct Books {
    payer: Payer,
    store: Store,
    ledger: LedgerAt,
    address: String,
    slice: NanoAtp,
    leaves: Vec<Leaf>,
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
        let mut random = [0; 32];
        getrandom::fill(&mut random).map_err(|e| anyhow::anyhow!("get randomness: {e}"))?;
        let salt = ContentHash::from_bytes(random);
        let wish = Wish {
            payer: owner,
            ledger: ledger.key,
            deposit: purse.deposit,
            salt,
            expires_s: now_s() + LIFE_S,
        };
        let payer = Payer::open(quote.clone(), &wish, &key, hot_key(&key, Some(salt)), now_s())?;
        let (open, store) = (payer.record().open.clone(), Store::open(home)?);
        let lock = store.lock(payer.channel())?.context("the channel is locked")?;
        if !store.make_room(true)? {
            bail!("there are too many open channels; close one with `cell channel close`");
        }
        let address = machine.address.clone();
        let slice = purse.slice;
        let books =
            Books { payer, store, ledger: ledger.clone(), address, slice, leaves: Vec::new() };
        // Kept before there is money in it: so that it is found again, whatever happens.
        books.keep(None)?;
        let funded = match escrow::fund(home, &ledger, &open) {
            Ok(funded) => funded,
            Err(error) => {
                // Where the ledger itself says that there is no deposit, there is nothing to find again.
                let asked = escrow::standing(home, &ledger, ToEscrow::Standing(open));
                if asked.is_err_and(|error| error.downcast_ref::<Failure>().is_some()) {
                    books.store.forget(books.payer.channel());
                }
                return Err(error);
            }
        };
        let books = Arc::new(Mutex::new(books));
        let mut this = Self { home: home.clone(), ledger, line, books, _lock: lock };
        match this.begin(quote, open, funded) {
            Ok(()) => Ok(this),
            Err(error) => Err(this.give_up(error)),
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
            ToPayer::Accepted(accept) => self.books().payer.is_accepted(&accept, &funded)?,
            other => return Err(unexpected(other)),
        }
        self.agree()?;
        match self.line.hear()? {
            ToPayer::Credited { .. } => Ok(()),
            other => Err(unexpected(other)),
        }
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
                let id = self.channel().short();
                format!("`cell channel close {id}` asks for the rest: {again:#}")
            }
        };
        error.context(rest)
    }

    /// The channel's id.
    pub(crate) fn channel(&self) -> ContentHash {
        self.books().payer.channel()
    }

    fn books(&self) -> std::sync::MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Agrees to more, if it is time.
    fn agree(&mut self) -> anyhow::Result<()> {
        let mut books = self.books();
        let slice = books.slice;
        let Some(voucher) = books.payer.voucher(slice, now_s()) else { return Ok(()) };
        // Kept first: a lower ceiling is never signed again.
        books.keep(None)?;
        drop(books);
        self.line.say(&ToPayee::Voucher(voucher))
    }

    /// Hears of bills and agrees to more on a thread of its own, until it is asked to end.
    pub(crate) fn pay(mut self) -> anyhow::Result<Paying> {
        let (ask, asked) = sync_channel::<()>(1);
        let channel = self.channel();
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
                if !matches!(asked.try_recv(), Err(std::sync::mpsc::TryRecvError::Empty)) {
                    break None;
                }
            };
            (self, failed)
        })?;
        Ok(Paying { channel, ask, thread })
    }

    /// Takes a message; `true` for the last bill.
    fn take(&self, message: ToPayer) -> anyhow::Result<bool> {
        let mut books = self.books();
        match message {
            ToPayer::Leaves(leaves) if books.leaves.len() + leaves.len() <= GAP_LEAVES_MAX => {
                books.leaves.extend(leaves);
                Ok(false)
            }
            ToPayer::Bill { receipt, is_last } => {
                let leaves = std::mem::take(&mut books.leaves);
                match books.payer.take(receipt, &leaves) {
                    Ok(_) => books.keep(None)?,
                    Err(error) => {
                        return Err(caught(&self.home, &error).unwrap_or_else(|| error.into()));
                    }
                }
                Ok(is_last)
            }
            ToPayer::Credited { .. } => Ok(false),
            other => {
                drop(books);
                Err(unexpected(other))
            }
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
        let charge = self.books().payer.charge();
        is_right(charge).map_err(|why| {
            Failure::new(Exit::NucleusFault, format!("{why}; no more is agreed to"))
        })?;
        let close = self.books().payer.close();
        self.line.say(&ToPayee::Close(close))?;
        loop {
            match self.line.hear()? {
                ToPayer::Closed(_) => break,
                ToPayer::Credited { .. } if began.elapsed() < ANSWER_TIME_MAX => {}
                other => return Err(unexpected(other)),
            }
        }
        // The ledger's word counts, not the payee's.
        let open = self.books().payer.record().open.clone();
        let standing = escrow::standing(&self.home, &self.ledger, ToEscrow::Standing(open))?;
        self.books().keep(Some(standing))?;
        if standing.paid_nano != charge.0 {
            bail!(
                "the ledger paid {} nano-ATP, and the bill says {}",
                standing.paid_nano,
                charge.0
            );
        }
        Ok(standing)
    }

    /// Asks the ledger for the rest, after the time in which the payee may still claim.
    fn request_close(&self) -> anyhow::Result<Standing> {
        let (open, request) = {
            let books = self.books();
            (books.payer.record().open.clone(), books.payer.request_close())
        };
        let standing =
            escrow::standing(&self.home, &self.ledger, ToEscrow::RequestClose { open, request })?;
        self.books().keep(Some(standing))?;
        Ok(standing)
    }
}

impl Books {
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
    ask: std::sync::mpsc::SyncSender<()>,
    thread: thread::JoinHandle<(Money, Option<anyhow::Error>)>,
}

impl Paying {
    /// Ends it. `is_right` says whether that is what everything should have cost.
    pub(crate) fn end(
        self,
        is_right: impl FnOnce(NanoAtp) -> Result<(), String>,
    ) -> anyhow::Result<Standing> {
        // It may have ended by itself.
        let _ = self.ask.try_send(());
        let (mut money, failed) =
            self.thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?;
        let settled = match failed {
            None => money.settle(is_right),
            Some(error) => Err(error),
        };
        settled.map_err(|error| money.give_up(error))
    }
}

/// Goes on with a channel that was left, closes it with the payee if that answers, and at the ledger if not.
pub(super) fn close(home: &Home, kept: Kept, by_force: bool) -> anyhow::Result<Standing> {
    let Kept { ledger, side: Side::Pays { record, address }, standing } = kept else {
        bail!("this machine is paid by that channel; `cell channel claim` claims");
    };
    let (key, salt) = (home.key()?, record.open.body.salt);
    let peer = record.open.body.payee;
    let payer = Payer::resume(record, hot_key(&key, Some(salt)));
    let store = Store::open(home)?;
    let lock = store.lock(payer.channel())?.context("another process works with that channel")?;
    let books = Books {
        payer,
        store,
        ledger: ledger.clone(),
        address: address.clone(),
        slice: NanoAtp::ZERO,
        leaves: Vec::new(),
    };
    let asked =
        escrow::standing(home, &ledger, ToEscrow::Standing(books.payer.record().open.clone()));
    if let Ok(now) = asked
        && !now.is_open
    {
        books.keep(Some(now))?;
        return Ok(now);
    }
    books.keep(standing)?;
    let machine = Machine { peer, address };
    let books = Arc::new(Mutex::new(books));
    let mut money = Money { home: home.clone(), ledger, line: Line::none()?, books, _lock: lock };
    if by_force {
        return money.request_close();
    }
    money.line = Line::open(home, &machine).context(
        "the machine that is paid does not answer; `cell channel close --force` asks the ledger alone",
    )?;
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
        let (channel, leaves) = {
            let books = self.books();
            let last = books.payer.record().last.receipt.as_ref();
            (books.payer.channel().to_string(), last.map_or(0, |receipt| receipt.body.leaves))
        };
        self.line.say(&ToPayee::Resume { channel, leaves })?;
        let began = Instant::now();
        while began.elapsed() < ANSWER_TIME_MAX {
            match self.line.hear()? {
                ToPayer::Shown(shown) => {
                    let last = shown.last;
                    let mut books = self.books();
                    let leaves = std::mem::take(&mut books.leaves);
                    books.payer.resync(last, &leaves)?;
                    return books.keep(None);
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
    fn open(home: &Home, machine: &Machine) -> anyhow::Result<Self> {
        Self::of(super::connect(home, machine, &Request::Channel)?)
    }

    /// One on which nobody is.
    fn none() -> anyhow::Result<Self> {
        Self::of(UnixStream::pair()?.0)
    }

    /// Reads what comes on a thread of its own.
    fn of(to: UnixStream) -> anyhow::Result<Self> {
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

/// Keeps what proves a cheat, and says where.
fn caught(home: &Home, error: &ChannelError) -> Option<anyhow::Error> {
    let ChannelError::Equivocation(proof) = error else { return None };
    let path = home.root().join(format!("cheat-{}.json", proof.open.channel().short()));
    let written = File::create(&path).and_then(|mut file| {
        let text = serde_json::to_string_pretty(proof).map_err(std::io::Error::other)?;
        file.write_all(text.as_bytes())
    });
    let kept = match written {
        Ok(()) => format!("the proof is in {}", path.display()),
        Err(error) => format!("the proof could not be kept: {error}"),
    };
    Some(anyhow::anyhow!("{error}; {kept}"))
}
