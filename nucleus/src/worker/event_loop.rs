//! The worker's threads: plain epoll loops that own connections and the calls that come from them.
//!
//! A call is a future that its loop polls directly. One that is ready at the first poll, as most
//! are, is answered before anything else happens; one that burned a slice of fuel goes to the back
//! of the run queue, and sockets are looked at between any two slices.

mod shared_memory;
mod tasks;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::Wake;
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use cell_client::ring::Looks;
use cell_host::limits::SLICE_FUEL;
use mio::net::{UnixListener, UnixStream};
use mio::{Events, Interest, Token};
use tokio::runtime::Handle;

use super::cells::Entry;
use super::clock::Clock;
use super::connection::Connection;
use super::run_queue::RunQueue;
use super::slots::Party;
use super::turn::{FRAMES_PER_SHARED_TURN, FRAMES_PER_TURN, READ_BYTES, Task, Turn};
use super::{AbortOnPanic, Worker};
use crate::allocations;
use crate::link::{FromWorker, PEER_UID_MIN};
use tasks::Place;

/// Connections all loops together may have; one more is closed at once.
pub(super) const CONNECTIONS_MAX: usize = 4096;
/// Fuel that the guests of one connection's calls may burn in its turn; what came with them is queued, and takes
/// turns with other connections' calls.
const FUEL_PER_TURN: u64 = SLICE_FUEL;
/// Buffers that are kept for requests to come: as many as a turn may read.
const REQUESTS_KEPT: usize = FRAMES_PER_TURN;
/// How often deadlines, stalled connections and cancelled calls are looked at.
const TICK: Duration = Duration::from_millis(25);
const WAKE: Token = Token(usize::MAX);
const CLOCK: Token = Token(usize::MAX - 1);
/// Tokens from here on are listeners.
const LISTENERS: usize = 1 << 40;

/// All loops of the worker.
#[derive(Debug)]
pub(super) struct Loops {
    shared: Vec<Arc<Shared>>,
    next: AtomicUsize,
}

/// What other threads may do to a loop.
#[derive(Debug)]
struct Shared {
    mail: Mutex<Vec<Mail>>,
    woken: Mutex<Vec<usize>>,
    waker: mio::Waker,
    thread: OnceLock<ThreadId>,
    /// Every loop, to spread new connections.
    peers: OnceLock<Vec<Arc<Self>>>,
    next_peer: AtomicUsize,
    load: Arc<Load>,
}

/// What all loops have together.
#[derive(Debug, Default)]
pub(super) struct Load {
    pub(super) connections: AtomicUsize,
    /// Heap allocations of the loops' threads.
    pub(super) allocations: AtomicU64,
    /// Bytes of replies moved out of their instances.
    moved: Arc<AtomicUsize>,
    /// Bytes of memory shared with clients.
    shared_bytes: Arc<AtomicUsize>,
    /// Numbers that tell connections apart.
    callers: AtomicU64,
}

#[derive(Debug)]
enum Mail {
    Listen(Arc<Entry>, OwnedFd),
    Unlisten(String),
    Connection(UnixStream, Arc<Entry>),
}

impl Loops {
    /// Starts this many threads.
    pub(super) fn start(
        threads: usize,
        worker: &Arc<Worker>,
        runtime: &Handle,
    ) -> io::Result<Self> {
        let load = Arc::<Load>::default();
        let mut shared = Vec::new();
        let mut polls = Vec::new();
        for _ in 0..threads.max(1) {
            let poll = mio::Poll::new()?;
            shared.push(Arc::new(Shared {
                mail: Mutex::default(),
                woken: Mutex::default(),
                waker: mio::Waker::new(poll.registry(), WAKE)?,
                thread: OnceLock::new(),
                peers: OnceLock::new(),
                next_peer: AtomicUsize::new(0),
                load: Arc::clone(&load),
            }));
            polls.push(poll);
        }
        for (at, (one, poll)) in shared.iter().zip(polls).enumerate() {
            // Set once, here.
            let _ = one.peers.set(shared.clone());
            let clock = Clock::new(poll.registry(), CLOCK)?;
            let event_loop = EventLoop::new(poll, clock, Arc::clone(one), Arc::clone(worker));
            let runtime = runtime.clone();
            thread::Builder::new().name(format!("loop {at}")).spawn(move || {
                let _runtime = runtime.enter();
                let _whole = AbortOnPanic;
                event_loop.run();
            })?;
        }
        Ok(Self { shared, next: AtomicUsize::new(0) })
    }

    /// Takes over a cell's listening socket.
    pub(super) fn listen(&self, entry: Arc<Entry>, listener: OwnedFd) -> io::Result<()> {
        let at = self.next.fetch_add(1, Relaxed) % self.shared.len();
        let shared = self.shared.get(at).ok_or_else(|| io::Error::other("no loop"))?;
        shared.send(Mail::Listen(entry, listener));
        Ok(())
    }

    /// Serves a client whose connection was accepted elsewhere.
    pub(super) fn serve(&self, entry: Arc<Entry>, connection: OwnedFd) {
        let stream = std::os::unix::net::UnixStream::from(connection);
        let at = self.next.fetch_add(1, Relaxed) % self.shared.len();
        if let (Some(shared), Ok(())) = (self.shared.get(at), stream.set_nonblocking(true)) {
            shared.load.connections.fetch_add(1, Relaxed);
            shared.send(Mail::Connection(UnixStream::from_std(stream), entry));
        }
    }

    /// What all loops have.
    pub(super) fn load(&self) -> Arc<Load> {
        self.shared.first().map(|shared| Arc::clone(&shared.load)).unwrap_or_default()
    }

    /// Closes a cell's listening socket.
    pub(super) fn unlisten(&self, cell: &str) {
        for shared in &self.shared {
            shared.send(Mail::Unlisten(cell.to_owned()));
        }
    }
}

impl Shared {
    fn send(&self, mail: Mail) {
        lock(&self.mail).push(mail);
        self.interrupt();
    }

    fn interrupt(&self) {
        if self.thread.get() != Some(&thread::current().id()) {
            // An error here means that the loop is gone, and the process with it.
            let _ = self.waker.wake();
        }
    }
}

/// Puts a task back into its loop's run queue.
struct TaskWaker {
    task: usize,
    shared: Arc<Shared>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        lock(&self.shared.woken).push(self.task);
        self.shared.interrupt();
    }
}

struct EventLoop {
    poll: mio::Poll,
    shared: Arc<Shared>,
    worker: Arc<Worker>,
    listeners: Vec<Option<(UnixListener, Arc<Entry>)>>,
    vacant_listeners: Vec<usize>,
    connections: Vec<Option<(Connection, u64)>>,
    vacant: Vec<usize>,
    serial: u64,
    running: Vec<Place>,
    free: Vec<usize>,
    queue: RunQueue,
    /// Connections that ended their turn with more to do.
    turns: VecDeque<usize>,
    /// Connections through shared memory that are looked at again and again: a client that writes to
    /// it wakes nobody.
    awake: Vec<usize>,
    looks: Looks,
    /// Others had the processor since the last look.
    yielded: bool,
    buffer: Vec<u8>,
    tasks: Vec<Task>,
    /// Memory of requests that were answered.
    requests: Vec<Vec<u8>>,
    /// Of this thread, as of the last tick.
    allocations: u64,
    clock: Clock,
    /// A call or a client may run into a time limit: the clock runs.
    watching: bool,
}

impl EventLoop {
    fn new(poll: mio::Poll, clock: Clock, shared: Arc<Shared>, worker: Arc<Worker>) -> Self {
        Self {
            poll,
            shared,
            worker,
            listeners: Vec::new(),
            vacant_listeners: Vec::new(),
            connections: Vec::new(),
            vacant: Vec::new(),
            serial: 0,
            running: Vec::new(),
            free: Vec::new(),
            queue: RunQueue::default(),
            turns: VecDeque::new(),
            awake: Vec::new(),
            looks: Looks::default(),
            yielded: false,
            buffer: vec![0; READ_BYTES],
            tasks: Vec::new(),
            requests: Vec::new(),
            allocations: 0,
            clock,
            watching: false,
        }
    }

    fn run(mut self) {
        let _ = self.shared.thread.set(thread::current().id());
        let mut events = Events::with_capacity(256);
        loop {
            // A guest that yielded has woken itself while it was polled.
            self.take_woken();
            self.look_at_shared();
            let busy = self.is_busy() || !self.awake.is_empty();
            if let Err(error) = self.poll.poll(&mut events, busy.then_some(Duration::ZERO))
                && error.kind() != io::ErrorKind::Interrupted
            {
                tracing::error!(%error, "wait for events");
                return;
            }
            let now = Instant::now();
            for event in &events {
                match event.token() {
                    WAKE => {}
                    // It is read by being set again.
                    CLOCK => self.tick(now),
                    Token(at) if at >= LISTENERS => self.accept(at - LISTENERS),
                    // Both ways are closed: nobody is there to be answered.
                    Token(at) if event.is_write_closed() => self.disconnect(at),
                    Token(at) if self.is_shared(at) => self.wake_shared(at, now),
                    Token(at) => {
                        let read_closed = event.is_read_closed();
                        self.connection_ready(at, event.is_readable(), read_closed, now);
                    }
                }
            }
            self.take_mail();
            self.take_woken();
            if let Some(at) = self.turns.pop_front() {
                self.turn(at, Instant::now());
            }
            if let Some(task) = self.queue.pop() {
                self.advance(task);
                // The kernel would let a busy loop run for milliseconds while others, and those who
                // call, have microseconds of work to do.
                thread::yield_now();
            }
            if !events.is_empty() {
                self.watch();
            }
        }
    }

    /// Something may run into a time limit from here on.
    fn watch(&mut self) {
        if !self.watching {
            self.watching = true;
            self.clock.set(TICK);
        }
    }

    fn is_busy(&self) -> bool {
        !self.queue.is_empty() || !self.turns.is_empty()
    }

    fn take_mail(&mut self) {
        let mail = std::mem::take(&mut *lock(&self.shared.mail));
        for mail in mail {
            let taken = match mail {
                Mail::Listen(entry, fd) => self.listen(entry, fd),
                Mail::Unlisten(cell) => {
                    self.unlisten(&cell);
                    Ok(())
                }
                Mail::Connection(stream, entry) => self.connect(stream, entry),
            };
            if let Err(error) = taken {
                tracing::warn!(%error, "take a socket");
            }
        }
    }

    fn take_woken(&mut self) {
        let woken = std::mem::take(&mut *lock(&self.shared.woken));
        for task in woken {
            if let Some(Place { task: Some(running), .. }) = self.running.get_mut(task)
                && !running.queued
            {
                running.queued = true;
                self.queue.push(running.connection, task);
            }
        }
    }

    fn listen(&mut self, entry: Arc<Entry>, fd: OwnedFd) -> io::Result<()> {
        let listener = std::os::unix::net::UnixListener::from(fd);
        listener.set_nonblocking(true)?;
        let mut listener = UnixListener::from_std(listener);
        let at = self.vacant_listeners.pop().unwrap_or(self.listeners.len());
        self.poll.registry().register(&mut listener, Token(LISTENERS + at), Interest::READABLE)?;
        if at == self.listeners.len() {
            self.listeners.push(None);
        }
        if let Some(place) = self.listeners.get_mut(at) {
            *place = Some((listener, entry));
        }
        // Clients may have queued up before the socket was registered.
        self.accept(at);
        Ok(())
    }

    fn unlisten(&mut self, cell: &str) {
        for (at, place) in self.listeners.iter_mut().enumerate() {
            if let Some((listener, entry)) = place
                && entry.name.as_str() == cell
            {
                let _ = self.poll.registry().deregister(listener);
                *place = None;
                self.vacant_listeners.push(at);
            }
        }
    }

    fn accept(&self, at: usize) {
        loop {
            let Some(Some((listener, entry))) = self.listeners.get(at) else { return };
            match listener.accept() {
                Ok((stream, _)) => {
                    if self.shared.load.connections.load(Relaxed) >= CONNECTIONS_MAX {
                        continue;
                    }
                    self.shared.load.connections.fetch_add(1, Relaxed);
                    let entry = Arc::clone(entry);
                    let peers = self.shared.peers.get().map(Vec::as_slice).unwrap_or_default();
                    let turn = self.shared.next_peer.fetch_add(1, Relaxed);
                    match peers.get(turn % peers.len().max(1)) {
                        Some(peer) if !Arc::ptr_eq(peer, &self.shared) => {
                            peer.send(Mail::Connection(stream, entry))
                        }
                        _ => lock(&self.shared.mail).push(Mail::Connection(stream, entry)),
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    tracing::warn!(%error, cell = %entry.name, "accept a connection");
                    return;
                }
            }
        }
    }

    fn connect(&mut self, mut stream: UnixStream, entry: Arc<Entry>) -> io::Result<()> {
        let (serves_uid, payer) = self.worker.serves;
        let uid = peer_uid(&stream).inspect_err(|_| self.disconnected())?;
        // Of another machine's user the kernel knows nothing; the nucleus has said who it is.
        if uid != serves_uid && serves_uid < PEER_UID_MIN {
            // Another user's calls run in another process.
            self.disconnected();
            let foreign = FromWorker::Foreign { cell: entry.name.as_str().to_owned() };
            return self.worker.link.send(&foreign, &[stream.as_fd()]);
        }
        let at = self.vacant.pop().unwrap_or(self.connections.len());
        if at == self.connections.len() {
            self.connections.push(None);
        }
        let registered = self.poll.registry().register(&mut stream, Token(at), Interest::READABLE);
        registered.inspect_err(|_| {
            self.vacant.push(at);
            self.shared.load.connections.fetch_sub(1, Relaxed);
        })?;
        let purse = self.worker.purses.of(serves_uid);
        self.serial += 1;
        if let Some(place) = self.connections.get_mut(at) {
            let party = Party {
                cells: Arc::clone(&self.worker.cells),
                entry,
                purse,
                payer,
                caller: self.shared.load.callers.fetch_add(1, Relaxed),
            };
            let shared_bytes = Arc::clone(&self.shared.load.shared_bytes);
            let connection = Connection::new(stream, party, shared_bytes);
            *place = Some((connection, self.serial));
        }
        self.turn(at, Instant::now());
        Ok(())
    }

    fn connection_ready(&mut self, at: usize, readable: bool, read_closed: bool, now: Instant) {
        if let Some(Some((connection, _))) = self.connections.get_mut(at) {
            connection.readable |= readable || read_closed;
            connection.read_closed |= read_closed;
            if !connection.is_greedy() {
                self.turn(at, now);
            } else if !self.turns.contains(&at) {
                self.turns.push_back(at);
            }
        }
    }

    /// One connection's turn: read, run what is ready, send.
    fn turn(&mut self, at: usize, now: Instant) {
        let is_alone = self.connections.len() == self.vacant.len() + 1;
        let frames = if is_alone { FRAMES_PER_TURN } else { FRAMES_PER_SHARED_TURN };
        let Some(Some((connection, serial))) = self.connections.get_mut(at) else { return };
        let serial = *serial;
        let mut tasks = std::mem::take(&mut self.tasks);
        let alive = connection.read(&mut Turn {
            buffer: &mut self.buffer,
            frames_max: frames,
            tasks: &mut tasks,
            requests: &mut self.requests,
            now,
        });
        let mut burned = 0_u64;
        for task in tasks.drain(..) {
            burned += self.start(at, serial, task, burned < FUEL_PER_TURN);
        }
        self.tasks = tasks;
        if alive { self.settle(at) } else { self.disconnect(at) }
    }

    /// Sends what is queued, and lets the connection have another turn if it needs one.
    fn settle(&mut self, at: usize) {
        let Some(Some((connection, _))) = self.connections.get_mut(at) else { return };
        if !connection.flush() || connection.register(self.poll.registry(), Token(at)).is_err() {
            return self.disconnect(at);
        }
        if connection.wants_turn() && !self.turns.contains(&at) {
            self.turns.push_back(at);
        }
        if self.is_shared(at) {
            self.keep_awake(at);
        }
    }

    fn disconnect(&mut self, at: usize) {
        let Some((mut connection, _)) = self.connections.get_mut(at).and_then(Option::take) else {
            return;
        };
        let _ = self.poll.registry().deregister(connection.wire_mut().stream_mut());
        connection.close();
        self.vacant.push(at);
        self.disconnected();
    }

    fn disconnected(&self) {
        self.shared.load.connections.fetch_sub(1, Relaxed);
    }

    fn tick(&mut self, now: Instant) {
        let allocations = allocations::of_this_thread();
        let more = allocations.wrapping_sub(std::mem::replace(&mut self.allocations, allocations));
        self.shared.load.allocations.fetch_add(more, Relaxed);
        for at in 0..self.running.len() {
            let Some(Place { task: Some(running), .. }) = self.running.get_mut(at) else {
                continue;
            };
            if now >= running.deadline && running.stop.status().is_none() {
                running.stop.time_out();
            }
            if running.stop.status().is_some() && !running.queued {
                running.queued = true;
                self.queue.push(running.connection, at);
            }
        }
        self.watching = self.running.len() > self.free.len();
        for at in 0..self.connections.len() {
            let Some(Some((connection, _))) = self.connections.get_mut(at) else { continue };
            connection.free_instances(now, &self.shared.load.moved);
            if connection.is_stalled(now) {
                self.disconnect(at);
            } else {
                self.watching |= connection.waits_for_client();
            }
        }
        self.clock.set(if self.watching { TICK } else { Duration::ZERO });
    }
}

fn peer_uid(stream: &UnixStream) -> io::Result<u32> {
    Ok(rustix::net::sockopt::socket_peercred(stream.as_fd())?.uid.as_raw())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
