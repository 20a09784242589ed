//! The blocking side of a connection: moves a session's bytes through a socket, with deadlines.
//!
//! Writes never block: when the socket takes no more, both directions are waited for, so that two
//! sides that write to each other cannot lock up. A plain call is one `send`, one `poll` of the
//! socket and an alarm, and one `recv`. The wait itself has no timeout, although `SO_RCVTIMEO`
//! would save the `poll`: a timer that the kernel starts and stops with every wait costs more than
//! the system call (64 B echo on one core, p50: 10.2 µs with it, 8.5 µs as it is here).

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use cell_abi::Header;
use rkyv::util::AlignedVec;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendFlags, SocketAddrUnix, SocketFlags, SocketType, sockopt,
};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};

use crate::error::{Closed, Error};
use crate::options::{CALLS_IN_FLIGHT_MAX, Config};
use crate::outbox::Tail;
use crate::session::Session;

/// The system counts socket timeouts in ticks of about this length, and takes zero for "never".
const SOCKET_TIMEOUT_MIN: Duration = Duration::from_millis(1);
/// A wait that would be longer is one without an end.
pub(crate) const SOCKET_TIMEOUT_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

#[derive(Debug)]
pub(crate) struct Link {
    stream: UnixStream,
    pub(crate) session: Session<Option<Instant>>,
    /// Requests that ended, in the order in which they did, until someone takes them.
    ready: VecDeque<Done>,
    closed: Option<Closed>,
    next_id: u64,
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
        Ok(Self {
            stream,
            session: Session::new(config.reply_bytes_max),
            ready: VecDeque::with_capacity(CALLS_IN_FLIGHT_MAX),
            closed: None,
            next_id: 0,
            now: Instant::now(),
            stale: false,
            earliest: None,
            alarm: timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC)?,
            rings_at: None,
        })
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
        if large || flush {
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

    /// The peer reads no more; it may have said why, or answered, before that.
    fn read_last_words(&mut self) {
        while self.closed.is_none() && self.can_read() {
            self.read();
        }
        if self.closed.is_none() {
            self.close(self.session.end_of_stream());
        }
    }

    /// Waits until the socket can do one of these or the time has come, and reads if it can.
    fn wait_for_socket(&mut self, wanted: PollFlags, until: Option<Instant>) {
        self.set_alarm(until);
        let mut fds = [PollFd::new(&self.stream, wanted), PollFd::new(&self.alarm, PollFlags::IN)];
        // Interrupted means that nothing was found; the caller looks at its deadline and comes back.
        let _ = poll(&mut fds, None);
        let [socket, alarm] = fds.map(|fd| fd.revents());
        if !alarm.is_empty() {
            self.rings_at = None;
            self.settime(Duration::ZERO);
        }
        if socket.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
            self.read();
        }
        self.stale = true;
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
