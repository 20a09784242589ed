//! The blocking side of a connection: moves a session's bytes through a socket, with deadlines.
//!
//! Writes never block: when the socket takes no more, both directions are waited for, so that two
//! sides that write to each other cannot lock up. A plain call is one `send`, one `epoll_wait`
//! for the socket and an alarm, and one `recv`. The wait itself has no timeout, although `SO_RCVTIMEO`
//! would save that call: a timer that the kernel starts and stops with every wait costs more than
//! the system call (64 B echo on one core, p50: 10.2 µs with it, 8.5 µs as it is here).
//!
//! Where server and client share memory, bytes go through that instead, and the socket tells each
//! side that the other is gone, and wakes one that sleeps.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use cell_abi::frame::{FEATURE_SHARED_MEMORY, HELLO_BYTES};
use cell_abi::{Header, Hello};
use rkyv::util::AlignedVec;
use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendFlags, SocketAddrUnix, SocketFlags, SocketType, sockopt,
};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};

use crate::error::{Closed, Error};
use crate::options::{CALLS_IN_FLIGHT_MAX, Config};
use crate::outbox::Tail;
use crate::ring::{Impossible, Ring, Spin};
use crate::session::Session;

/// The system counts socket timeouts in ticks of about this length, and takes zero for "never".
const SOCKET_TIMEOUT_MIN: Duration = Duration::from_millis(1);
/// What an event is about.
const BYTES: epoll::EventData = epoll::EventData::new_u64(0);
const ALARM: epoll::EventData = epoll::EventData::new_u64(1);
/// Requests that are sent together at most, so that the server works while more are made.
const REQUESTS_TOGETHER: usize = 16;
/// A wait that would be longer is one without an end.
pub(crate) const SOCKET_TIMEOUT_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

#[derive(Debug)]
pub(crate) struct Link {
    stream: UnixStream,
    /// Waits for the stream and the alarm: `poll` would look both up for every call.
    events: OwnedFd,
    /// Memory shared with the server, in place of the socket.
    shared: Option<Ring>,
    spin: Spin,
    pub(crate) session: Session<Option<Instant>>,
    /// Requests that ended, in the order in which they did, until someone takes them.
    ready: VecDeque<Done>,
    closed: Option<Closed>,
    next_id: u64,
    /// Requests since the last ones were sent.
    unsent_requests: usize,
    /// When the clock was last looked at.
    now: Instant,
    /// Whether it must be looked at again before anything else waits.
    stale: bool,
    /// No request in flight has an earlier deadline; `None` if none has any.
    earliest: Option<Instant>,
    /// Ends a wait. One timer for many calls, since one that is set for every wait costs a tenth
    /// of a small call: as a rule it rings long after the call it was set for.
    alarm: OwnedFd,
    /// When the alarm will ring; never later than any wait that is under way should end.
    rings_at: Option<Instant>,
}

/// The server's hello, and the memory that came along.
struct TheirHello {
    hello: [u8; HELLO_BYTES],
    file: Option<OwnedFd>,
}

/// A request that ended: answered, or with `None` timed out.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) id: u64,
    pub(crate) answer: Option<(Header, AlignedVec)>,
}

/// Connects to a cell's socket; waits at most this long for a nucleus that accepts slowly.
pub(crate) fn connect(path: &Path, timeout: Duration) -> Result<UnixStream, Error> {
    let connect = || -> Result<UnixStream, Errno> {
        let socket = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )?;
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, socket_timeout(timeout))?;
        let address = SocketAddrUnix::new(path)?;
        rustix::io::retry_on_intr(|| rustix::net::connect(&socket, &address))?;
        Ok(socket.into())
    };
    connect().map_err(|errno| Error::Connect { path: path.to_owned(), source: errno.into() })
}

impl Link {
    pub(crate) fn new(stream: UnixStream, config: Config) -> io::Result<Self> {
        stream.set_nonblocking(false)?;
        let alarm = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC)?;
        let events = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&events, &stream, BYTES, epoll::EventFlags::IN)?;
        epoll::add(&events, &alarm, ALARM, epoll::EventFlags::IN)?;
        Ok(Self {
            stream,
            events,
            shared: None,
            spin: Spin::default(),
            session: Session::new(config.reply_bytes_max),
            ready: VecDeque::with_capacity(CALLS_IN_FLIGHT_MAX),
            closed: None,
            next_id: 0,
            unsent_requests: 0,
            now: Instant::now(),
            stale: false,
            earliest: None,
            alarm,
            rings_at: None,
        })
    }

    /// Says hello and asks the server to share memory; it may decline.
    pub(crate) fn share_memory(&mut self, config: Config) -> Result<(), Error> {
        let hello = Hello { features: FEATURE_SHARED_MEMORY, ..Hello::CURRENT };
        let deadline = Instant::now().checked_add(config.timeout);
        self.look_at_clock();
        self.session = Session::greeted(config.reply_bytes_max);
        self.session.outbox.push(&hello.encode());
        self.send(&mut Tail::empty(), deadline)?;
        let TheirHello { hello, file } = loop {
            self.look_at_clock();
            if deadline.is_some_and(|deadline| deadline <= self.now) {
                return Err(Error::TimedOut);
            }
            self.wait_for(PollFlags::IN, deadline);
            if let Some(hello) = self.receive_hello()? {
                break hello;
            }
        };
        let theirs = Hello::decode(&hello).map_err(|error| Error::from(Closed::from(error)))?;
        if theirs.features & FEATURE_SHARED_MEMORY != 0 {
            let file = file.ok_or(Error::Io(io::ErrorKind::InvalidData))?;
            self.shared = Some(Ring::attach(file).map_err(|error| Error::Io(error.kind()))?);
        }
        Ok(())
    }

    /// The server's hello, which is sent in one piece, and the memory that came with it.
    fn receive_hello(&self) -> Result<Option<TheirHello>, Error> {
        let mut hello = [0; HELLO_BYTES];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC | RecvFlags::WAITALL;
        let mut parts = [IoSliceMut::new(&mut hello)];
        let got = match rustix::net::recvmsg(&self.stream, &mut parts, &mut control, flags) {
            Ok(got) => got.bytes,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(None),
            Err(errno) => return Err(Error::Io(io::Error::from(errno).kind())),
        };
        let file = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut files) => files.next(),
            _ => None,
        });
        match got {
            HELLO_BYTES => Ok(Some(TheirHello { hello, file })),
            _ => Err(self.session.end_of_stream().into()),
        }
    }

    pub(crate) const fn shares_memory(&self) -> bool {
        self.shared.is_some()
    }

    /// Takes a request on; its id is filled in here. It is sent at once if `flush`, or when enough
    /// has come together.
    pub(crate) fn ask(
        &mut self,
        header: Header,
        payload: &[u8],
        timeout: Duration,
        flush: bool,
    ) -> Result<u64, Error> {
        self.check_open()?;
        if self.session.in_flight() + self.ready.len() >= CALLS_IN_FLIGHT_MAX {
            return Err(Error::WindowFull);
        }
        self.look_at_clock();
        let deadline = self.now.checked_add(timeout);
        if self.session.outbox.is_full() {
            self.send(&mut Tail::empty(), deadline)?;
        }

        let header = Header { request_id: self.next_id, ..header };
        self.next_id += 1;
        if self.session.in_flight() == 0 {
            self.earliest = None;
        }
        self.earliest = earlier(self.earliest, deadline);
        let large = self.session.ask(&header, payload, deadline);
        let mut tail = if large { Tail::new(payload) } else { Tail::empty() };
        self.unsent_requests += 1;
        if large || flush || self.unsent_requests >= REQUESTS_TOGETHER {
            self.unsent_requests = 0;
            let sent = self.send(&mut tail, deadline);
            // The frame has begun, so it must go on, even if its call is given up.
            tail.move_to(&mut self.session.outbox);
            // A call that timed out is found by `wait`, like any other.
            if let Err(error) = sent
                && !matches!(error, Error::TimedOut)
            {
                return Err(error);
            }
        }
        Ok(header.request_id)
    }

    /// Sends what was put off.
    pub(crate) fn flush(&mut self, timeout: Duration) -> Result<(), Error> {
        self.check_open()?;
        self.look_at_clock();
        let deadline = self.now.checked_add(timeout);
        self.send(&mut Tail::empty(), deadline)
    }

    /// Waits for the end of a request that was just sent.
    pub(crate) fn wait(&mut self, id: u64) -> Result<Done, Error> {
        loop {
            if let Some(at) = self.ready.iter().position(|done| done.id == id)
                && let Some(done) = self.ready.remove(at)
            {
                return Ok(done);
            }
            self.advance()?;
        }
    }

    /// Waits for the end of any request.
    pub(crate) fn wait_any(&mut self) -> Result<Done, Error> {
        self.stale = true;
        loop {
            if let Some(done) = self.ready.pop_front() {
                return Ok(done);
            }
            self.check_open()?;
            if self.session.wanted().next().is_none() {
                return Err(Error::NothingInFlight);
            }
            self.advance()?;
        }
    }

    /// Moves some bytes, or waits until that is possible or a deadline passes.
    fn advance(&mut self) -> Result<(), Error> {
        self.check_open()?;
        self.look_at_clock_if_stale();
        if self.expire() || self.write(&mut Tail::empty()) {
            return Ok(());
        }
        let wanted = if self.session.outbox.is_empty() {
            PollFlags::IN
        } else {
            PollFlags::IN | PollFlags::OUT
        };
        self.wait_for_socket(wanted, self.earliest);
        Ok(())
    }

    fn look_at_clock(&mut self) {
        self.now = Instant::now();
        self.stale = false;
    }

    fn look_at_clock_if_stale(&mut self) {
        if self.stale {
            self.look_at_clock();
        }
    }

    /// Sends everything, reading whenever the socket takes no more.
    fn send(&mut self, tail: &mut Tail<&[u8]>, deadline: Option<Instant>) -> Result<(), Error> {
        loop {
            self.check_open()?;
            if self.session.outbox.is_empty() && tail.is_empty() {
                return Ok(());
            }
            if !self.write(tail) {
                self.look_at_clock_if_stale();
                if deadline.is_some_and(|deadline| deadline <= self.now) {
                    return Err(Error::TimedOut);
                }
                self.wait_for_socket(PollFlags::IN | PollFlags::OUT, deadline);
            }
        }
    }

    /// One write that does not block; says whether there was anything it could do.
    fn write(&mut self, tail: &mut Tail<&[u8]>) -> bool {
        if self.shared.is_some() {
            return self.write_shared(tail);
        }
        let unsent = self.session.outbox.unsent();
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let sent = if !tail.is_empty() {
            let [payload, padding] = tail.parts();
            let parts = [IoSlice::new(unsent), IoSlice::new(payload), IoSlice::new(padding)];
            rustix::net::sendmsg(&self.stream, &parts, &mut SendAncillaryBuffer::default(), flags)
        } else if !unsent.is_empty() {
            rustix::net::send(&self.stream, unsent, flags)
        } else {
            return false;
        };
        match sent {
            Ok(bytes) => tail.advance(self.session.outbox.advance(bytes)),
            Err(Errno::AGAIN) => return false,
            Err(Errno::INTR) => {}
            Err(Errno::PIPE | Errno::CONNRESET) => self.read_last_words(),
            Err(errno) => self.close(Closed::Io(io::Error::from(errno).kind())),
        }
        true
    }

    /// The same through shared memory.
    fn write_shared(&mut self, tail: &mut Tail<&[u8]>) -> bool {
        let Some(ring) = &mut self.shared else { return false };
        let [payload, padding] = tail.parts();
        let Ok(written) = ring.write_all([self.session.outbox.unsent(), payload, padding]) else {
            self.close(Closed::Io(io::ErrorKind::InvalidData));
            return true;
        };
        let bell = ring.tell();
        tail.advance(self.session.outbox.advance(written));
        if bell {
            self.ring_bell();
        }
        written > 0
    }

    /// Wakes the server. Where the socket takes no more, it has bytes that wake it.
    fn ring_bell(&mut self) {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        match rustix::net::send(&self.stream, &[0], flags) {
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => self.read_last_words(),
        }
    }

    /// The peer reads no more; it may have said why, or answered, before that.
    fn read_last_words(&mut self) {
        match self.shared {
            Some(_) => self.read_shared(),
            None => {
                while self.closed.is_none() && self.can_read() {
                    self.read();
                }
            }
        }
        if self.closed.is_none() {
            self.close(self.session.end_of_stream());
        }
    }

    /// Waits until the socket can do one of these or the time has come, and reads if it can.
    fn wait_for_socket(&mut self, wanted: PollFlags, until: Option<Instant>) {
        if self.shared.is_some() {
            self.wait_for_shared(wanted.contains(PollFlags::OUT), until);
        } else if self.wait_for(wanted, until) {
            self.read();
        }
        self.stale = true;
    }

    /// Waits until the socket can do one of these or the time has come; says whether it can be read.
    fn wait_for(&mut self, wanted: PollFlags, until: Option<Instant>) -> bool {
        self.set_alarm(until);
        if wanted == PollFlags::IN {
            return self.wait_for_bytes();
        }
        let mut fds = [PollFd::new(&self.stream, wanted), PollFd::new(&self.alarm, PollFlags::IN)];
        // Interrupted means that nothing was found; the caller looks at its deadline and comes back.
        let _ = poll(&mut fds, None);
        let [socket, alarm] = fds.map(|fd| fd.revents());
        if !alarm.is_empty() {
            self.silence_alarm();
        }
        socket.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR)
    }

    /// The same for bytes alone, in half a microsecond less.
    fn wait_for_bytes(&mut self) -> bool {
        let mut events = [epoll::Event { flags: epoll::EventFlags::empty(), data: ALARM }; 2];
        let found = match epoll::wait(&self.events, &mut events, None) {
            Ok(found) => events.get(..found).unwrap_or_default(),
            Err(_) => &[],
        };
        let came = |what: epoll::EventData| found.iter().any(|e| e.data.u64() == what.u64());
        let (bytes, alarm) = (came(BYTES), came(ALARM));
        if alarm {
            self.silence_alarm();
        }
        bytes
    }

    fn silence_alarm(&mut self) {
        self.rings_at = None;
        self.settime(Duration::ZERO);
    }

    /// Waits for bytes in shared memory, or for room, and reads what there is.
    fn wait_for_shared(&mut self, for_room: bool, until: Option<Instant>) {
        let Some(ring) = &mut self.shared else { return };
        if !self.spin.until(|| ring.has_bytes() || (for_room && ring.has_room())) {
            let wait = ring.begin_wait(true, for_room);
            if wait.ring {
                self.ring_bell();
            }
            if wait.sleep {
                let since = Instant::now();
                let rung = self.wait_for(PollFlags::IN, until);
                self.spin.slept(since.elapsed());
                if let Some(ring) = &self.shared {
                    ring.end_wait();
                }
                if rung {
                    self.hear_bell();
                }
            }
        }
        self.read_shared();
    }

    /// Takes what woke this side from the socket.
    fn hear_bell(&mut self) {
        let mut bells = [0; 64];
        match rustix::net::recv(&self.stream, &mut bells, RecvFlags::DONTWAIT) {
            Ok((_, 0)) | Err(Errno::CONNRESET) => {
                // What it wrote before it went is still there.
                self.read_shared();
                self.close(self.session.end_of_stream());
            }
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => {}
            Err(errno) => self.close(Closed::Io(io::Error::from(errno).kind())),
        }
    }

    /// Reads everything that is in shared memory.
    fn read_shared(&mut self) {
        while let Some(ring) = &mut self.shared
            && self.closed.is_none()
        {
            let (lacking, free) = self.session.inbox.space();
            let read = ring.read(lacking).and_then(|first| {
                let second = if first == lacking.len() { ring.read(free)? } else { 0 };
                Ok(first + second)
            });
            match read {
                Ok(0) => return,
                Ok(bytes) => {
                    let bell = ring.tell();
                    self.session.inbox.advance(bytes);
                    self.collect();
                    if bell {
                        self.ring_bell();
                    }
                }
                Err(Impossible) => self.close(Closed::Io(io::ErrorKind::InvalidData)),
            }
        }
    }

    /// Sees to it that a wait ends at this time at the latest; it may end earlier.
    fn set_alarm(&mut self, until: Option<Instant>) {
        if let Some(until) = until
            && self.rings_at.is_none_or(|rings_at| rings_at > until)
        {
            self.rings_at = Some(until);
            self.settime(until.saturating_duration_since(self.now).max(Duration::from_nanos(1)));
        }
    }

    /// Lets the alarm ring after this time, or with zero not at all.
    fn settime(&mut self, after: Duration) {
        // Past the end of the clock means never.
        let it_value = Timespec::try_from(after).unwrap_or_default();
        let timer = Itimerspec { it_interval: Timespec::default(), it_value };
        if let Err(errno) = timerfd_settime(&self.alarm, TimerfdTimerFlags::empty(), &timer) {
            self.close(Closed::Io(io::Error::from(errno).kind()));
        }
    }

    fn can_read(&self) -> bool {
        let mut fds = [PollFd::new(&self.stream, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec::default())).is_ok_and(|found| found > 0)
    }

    /// One read, and everything that follows from it.
    fn read(&mut self) {
        let (lacking, free) = self.session.inbox.space();
        let got = if lacking.is_empty() {
            self.stream.read(free)
        } else {
            self.stream.read_vectored(&mut [IoSliceMut::new(lacking), IoSliceMut::new(free)])
        };
        match got.map_err(|error| error.kind()) {
            Ok(0) | Err(io::ErrorKind::ConnectionReset) => self.close(self.session.end_of_stream()),
            Ok(bytes) => {
                self.session.inbox.advance(bytes);
                self.collect();
            }
            Err(
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted,
            ) => {}
            Err(kind) => self.close(Closed::Io(kind)),
        }
    }

    fn collect(&mut self) {
        loop {
            match self.session.next() {
                Ok(Some((_, header, payload))) => {
                    let answer = Some((header, payload));
                    self.ready.push_back(Done { id: header.request_id, answer });
                }
                Ok(None) => return,
                Err(closed) => return self.close(closed),
            }
        }
    }

    /// Gives up the requests whose deadline has passed; says whether there were any.
    fn expire(&mut self) -> bool {
        if self.earliest.is_none_or(|earliest| earliest > self.now) {
            return false;
        }
        let mut late = Vec::new();
        self.earliest = None;
        for (id, deadline) in self.session.wanted() {
            if deadline.is_some_and(|deadline| deadline <= self.now) {
                late.push(id);
            } else {
                self.earliest = earlier(self.earliest, *deadline);
            }
        }
        for id in &late {
            self.session.abandon(*id);
            self.ready.push_back(Done { id: *id, answer: None });
        }
        if !late.is_empty() {
            // The caller may never come back, so the cancels go out now, if they can.
            self.write(&mut Tail::empty());
        }
        !late.is_empty()
    }

    fn close(&mut self, closed: Closed) {
        self.closed.get_or_insert(closed);
    }

    fn check_open(&self) -> Result<(), Error> {
        match &self.closed {
            Some(closed) => Err(closed.clone().into()),
            None => Ok(()),
        }
    }
}

fn earlier(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

fn socket_timeout(timeout: Duration) -> Option<Duration> {
    (timeout <= SOCKET_TIMEOUT_MAX).then_some(timeout.max(SOCKET_TIMEOUT_MIN))
}
