//! One client's connection: frames in, calls out of them, replies back.
//!
//! It reads and writes only when the loop says that the socket may be ready, and never blocks.

use std::io::{self, ErrorKind};
use std::mem;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use cell_abi::frame::{FEATURE_SHARED_MEMORY, HEADER_BYTES, HELLO_BYTES, Header, Hello, Kind};
use cell_abi::{FrameError, Open, Status};
use cell_host::StopHandle;
use mio::net::UnixStream;
use mio::{Registry, Token};

use super::call::{Begun, Call, Ended, Payload, refusal};
use super::purse::CALLS_PER_USER_MAX;
use super::slots::{Party, Slot};
use super::turn::{Task, Turn};
use super::unsent::{KEPT_BYTES, Unsent};
use super::wire::Wire;

/// A call frame up to this size waits in a buffer until it is complete; the payload of a larger one
/// is read straight into the guest's mailbox.
pub(super) const BUFFERED_BYTES_MAX: usize = 32 << 10;
/// Calls one connection may have in flight; the socket is not read while there are as many.
pub(super) const CALLS_IN_FLIGHT_MAX: usize = 256;
/// Reply bytes that may wait for a slow reader; the socket is not read while there are more.
pub(super) const UNSENT_BYTES_MAX: usize = 4 << 20;
/// Time a client has to say hello.
pub(super) const HELLO_TIME_MAX: Duration = Duration::from_secs(2);
/// Time without progress in the middle of a frame, either way, before a connection is closed.
pub(super) const STALL_TIME_MAX: Duration = Duration::from_secs(10);
/// Time a large reply may take to be sent: it keeps its instance for so long.
pub(super) const SEND_TIME_MAX: Duration = Duration::from_secs(30);
/// What is read at first after a call whose payload went straight to its mailbox.
const WITH_HEADER_BYTES: usize = 4 << 10;
/// Reads from one socket before the loop looks at its other connections.
const READS_PER_TURN: usize = 16;

pub(super) struct Connection {
    wire: Wire,
    party: Party,
    /// Memory shared with clients, over all connections.
    shared_bytes: Arc<AtomicUsize>,
    last_turn_was_full: bool,
    slots: Vec<Slot>,
    greeted: bool,
    /// The socket may have more to read.
    pub(super) readable: bool,
    /// The last call was large, and so may be the next.
    after_large: bool,
    /// How much the last read could have got.
    asked: usize,
    /// An event comes when the socket takes more.
    awaits_room: bool,
    /// The client sends no more: what is left is to be read to its end, which brings no new event.
    pub(super) read_closed: bool,
    /// Read, and not yet handled: part of a frame, or frames behind a full window.
    pending: Vec<u8>,
    stage: Stage,
    /// Request ids and stop handles of calls in flight.
    in_flight: Vec<(u64, StopHandle)>,
    /// Handles of calls that ended, for calls to come.
    spare_stops: Vec<StopHandle>,
    unsent: Unsent,
    /// Nothing more is read; closed when all is sent.
    closing: bool,
    progressed: Instant,
}

/// Where the connection is in its stream.
enum Stage {
    /// At a frame's start, or within a frame that is buffered.
    Frames,
    /// A large call waits for its mailbox; nothing is read meanwhile.
    AwaitMailbox,
    /// Bytes go into the mailbox.
    Fill { begun: Box<Begun>, filled: usize },
    /// These many bytes are of no use: padding, or the payload of a refused call.
    Skip(usize),
}

impl Connection {
    pub(super) fn new(stream: UnixStream, party: Party, shared_bytes: Arc<AtomicUsize>) -> Self {
        Self {
            wire: Wire::new(stream),
            party,
            shared_bytes,
            last_turn_was_full: false,
            slots: Vec::new(),
            greeted: false,
            readable: true,
            after_large: false,
            asked: 0,
            awaits_room: false,
            read_closed: false,
            pending: Vec::new(),
            stage: Stage::Frames,
            in_flight: Vec::new(),
            spare_stops: Vec::new(),
            unsent: Unsent::default(),
            closing: false,
            progressed: Instant::now(),
        }
    }

    pub(super) const fn wire_mut(&mut self) -> &mut Wire {
        &mut self.wire
    }

    /// Asks for an event when the socket takes more, if something waits for that; an event for each
    /// reply that was read would wake the loop for nothing.
    pub(super) fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        let wanted = !self.unsent.is_empty();
        if wanted == self.awaits_room {
            return Ok(());
        }
        self.awaits_room = wanted;
        self.wire.register(registry, token, wanted)
    }

    pub(super) const fn shares_memory(&self) -> bool {
        self.wire.is_shared()
    }

    /// Whether the client shares memory, and it has bytes, or room for what is unsent.
    pub(super) fn has_shared_work(&self) -> bool {
        self.wire.has_work(!self.is_paused(), !self.unsent.is_empty())
    }

    /// Whether it pays no more to look for what the client writes to shared memory.
    pub(super) fn goes_to_sleep(&mut self, now: Instant) -> bool {
        self.wire.goes_to_sleep(now, !self.is_paused(), !self.unsent.is_empty())
    }

    /// Reads and handles what there is, up to a turn's worth. `false`: the client is gone.
    pub(super) fn read(&mut self, turn: &mut Turn<'_>) -> bool {
        let alive = self.read_turn(turn);
        if !turn.tasks.is_empty() {
            self.wire.was_busy();
        }
        self.last_turn_was_full = turn.is_full();
        alive
    }

    fn read_turn(&mut self, turn: &mut Turn<'_>) -> bool {
        if !self.handle_pending(turn) {
            return !self.closing || !self.unsent.is_empty();
        }
        for _ in 0..READS_PER_TURN {
            if !self.may_read() || self.is_paused() || turn.is_full() {
                break;
            }
            let read = match &mut self.stage {
                Stage::Fill { begun, filled } => {
                    let rest = begun.request_mut().get_mut(*filled..).unwrap_or_default();
                    self.asked = rest.len();
                    self.wire.read(rest)
                }
                _ => {
                    // What comes with a large call's header is copied once more; so little of it
                    // comes with it.
                    let most = if self.after_large { WITH_HEADER_BYTES } else { turn.buffer.len() };
                    self.asked = most;
                    self.wire.read(turn.buffer.get_mut(..most).unwrap_or_default())
                }
            };
            match read {
                Ok(0) => return false,
                Ok(read) => {
                    self.progressed = turn.now;
                    if !self.take(read, turn) {
                        return true;
                    }
                    if matches!(turn.tasks.last(), Some(Task::Finish(_))) {
                        // It is answered before more is looked for.
                        return true;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.readable = false,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        true
    }

    /// Whether its last turn had as many calls as a turn may have: others go first.
    pub(super) const fn is_greedy(&self) -> bool {
        self.last_turn_was_full
    }

    /// Whether a turn ended with more to do.
    pub(super) fn wants_turn(&self) -> bool {
        !self.is_paused() && (self.may_read() || self.has_whole_frame())
    }

    /// Takes the end of a call and queues its reply.
    pub(super) fn end(&mut self, ended: Ended) {
        let id = ended.header.request_id;
        if let Some(at) = self.in_flight.iter().position(|(other, _)| *other == id) {
            let (_, stop) = self.in_flight.swap_remove(at);
            stop.reset();
            self.spare_stops.push(stop);
        }
        self.queue(ended);
    }

    /// A large call ended before it had a mailbox: its payload is skipped.
    pub(super) fn refuse_large(&mut self, asked: &Header, ended: Ended) {
        self.skip_payload(asked);
        self.end(ended);
    }

    fn skip_payload(&mut self, asked: &Header) {
        self.stage = Stage::Skip(whole_bytes(asked) - HEADER_BYTES);
    }

    /// A large call got its mailbox.
    pub(super) fn fill(&mut self, begun: Begun) {
        self.progressed = Instant::now();
        self.stage = Stage::Fill { begun: Box::new(begun), filled: 0 };
    }

    /// Sends what is queued, as far as it is taken. `false`: the client is gone.
    pub(super) fn flush(&mut self) -> bool {
        let alive = self.send();
        self.wire.tell();
        alive
    }

    /// Frees the instances whose replies wait for a client that reads slowly.
    pub(super) fn free_instances(&mut self, now: Instant, moved: &Arc<AtomicUsize>) {
        self.unsent.free_instances(now, moved);
    }

    /// Whether the client is to do something: to say hello, to end a frame, or to read.
    pub(super) fn waits_for_client(&self) -> bool {
        !self.greeted
            || !self.unsent.is_empty()
            || matches!(self.stage, Stage::Fill { .. } | Stage::Skip(_))
            || (!self.pending.is_empty() && !self.is_paused())
    }

    /// Whether the client has kept the connection, or an instance, waiting too long.
    pub(super) fn is_stalled(&self, now: Instant) -> bool {
        let since = |then: Instant| now.saturating_duration_since(then);
        // Bytes that drip count as progress, but an instance is not kept for ever.
        let keeps_instance = match (&self.stage, self.unsent.in_instance_since()) {
            (Stage::Fill { begun, .. }, _) => now > begun.limits().1,
            (_, Some(queued)) => since(queued) > SEND_TIME_MAX,
            _ => false,
        };
        let patience = if self.greeted { STALL_TIME_MAX } else { HELLO_TIME_MAX };
        keeps_instance || (self.waits_for_client() && since(self.progressed) > patience)
    }

    /// The connection ends: its calls are stopped and pay for what they burned.
    pub(super) fn close(self) {
        for (_, stop) in &self.in_flight {
            stop.cancel();
        }
        if let Stage::Fill { begun, .. } = self.stage {
            begun.abandon();
        }
    }

    fn may_read(&self) -> bool {
        if self.wire.is_shared() { self.wire.has_work(true, false) } else { self.readable }
    }

    fn is_paused(&self) -> bool {
        self.closing
            || matches!(self.stage, Stage::AwaitMailbox)
            || self.in_flight.len() >= CALLS_IN_FLIGHT_MAX
            || self.unsent.bytes() > UNSENT_BYTES_MAX
    }

    fn has_whole_frame(&self) -> bool {
        match &self.stage {
            Stage::Frames => {
                self.greeted
                    && self.pending.first_chunk().is_some_and(|header| self.can_step(header))
            }
            _ => !self.pending.is_empty(),
        }
    }

    /// Whether enough is pending for the frame with this header.
    fn can_step(&self, header: &[u8; HEADER_BYTES]) -> bool {
        // A bad header is handled at once: the connection goes away.
        Header::decode(header).map_or(true, |header| {
            let whole = whole_bytes(&header);
            self.pending.len() >= whole || (header.kind == Kind::Call && whole > BUFFERED_BYTES_MAX)
        })
    }

    /// Handles bytes that were read earlier; `false` when the connection is to be closed.
    fn handle_pending(&mut self, turn: &mut Turn<'_>) -> bool {
        if self.pending.is_empty() {
            return !self.closing;
        }
        let mut bytes = mem::take(&mut self.pending);
        let handled = self.handle(&bytes, turn);
        bytes.drain(..handled);
        self.keep_pending(bytes);
        !self.closing
    }

    /// Handles bytes just read: `read` of them, in the buffer or in the mailbox.
    fn take(&mut self, read: usize, turn: &mut Turn<'_>) -> bool {
        // A short read means that the socket is drained; the next bytes bring a new event.
        self.readable = read == self.asked || self.read_closed;
        if let Stage::Fill { filled, .. } = &mut self.stage {
            *filled += read;
            self.finish_if_filled(turn.tasks);
            return true;
        }
        if self.pending.is_empty() {
            // The turn's buffer is lent out while frames in it are handled.
            let buffer = mem::take(&mut turn.buffer);
            let bytes = buffer.get(..read).unwrap_or_default();
            let handled = self.handle(bytes, turn);
            let rest = bytes.get(handled..).unwrap_or_default();
            if !self.closing {
                self.pending.extend_from_slice(rest);
            }
            turn.buffer = buffer;
        } else {
            let mut joined = mem::take(&mut self.pending);
            joined.extend_from_slice(turn.buffer.get(..read).unwrap_or_default());
            let handled = self.handle(&joined, turn);
            joined.drain(..handled);
            self.keep_pending(joined);
        }
        !self.closing
    }

    fn keep_pending(&mut self, mut bytes: Vec<u8>) {
        if self.closing {
            return;
        }
        if bytes.is_empty() && bytes.capacity() > KEPT_BYTES {
            bytes = Vec::new();
        }
        self.pending = bytes;
    }

    /// Handles as many frames as are whole; returns how many bytes that took.
    fn handle(&mut self, bytes: &[u8], turn: &mut Turn<'_>) -> usize {
        let mut at = 0;
        while !self.is_paused() && !turn.is_full() {
            let rest = bytes.get(at..).unwrap_or_default();
            let handled = match self.step(rest, turn) {
                Ok(Some(handled)) => handled,
                Ok(None) => break,
                Err(error) => {
                    self.go_away(&error);
                    break;
                }
            };
            at += handled;
        }
        at
    }

    /// One step: `None` when there are too few bytes for it.
    fn step(&mut self, bytes: &[u8], turn: &mut Turn<'_>) -> Result<Option<usize>, FrameError> {
        match &mut self.stage {
            Stage::AwaitMailbox => Ok(None),
            Stage::Skip(left) => {
                let skipped = bytes.len().min(*left);
                *left -= skipped;
                if *left == 0 {
                    self.stage = Stage::Frames;
                }
                Ok((skipped > 0 || matches!(self.stage, Stage::Frames)).then_some(skipped))
            }
            Stage::Fill { begun, filled } => {
                let mailbox = begun.request_mut().get_mut(*filled..).unwrap_or_default();
                let taken = bytes.len().min(mailbox.len());
                if let (Some(to), Some(from)) = (mailbox.get_mut(..taken), bytes.get(..taken)) {
                    to.copy_from_slice(from);
                }
                *filled += taken;
                self.finish_if_filled(turn.tasks);
                Ok((taken > 0).then_some(taken))
            }
            Stage::Frames if !self.greeted => self.greet(bytes),
            Stage::Frames => self.frame(bytes, turn),
        }
    }

    fn greet(&mut self, bytes: &[u8]) -> Result<Option<usize>, FrameError> {
        let Some((hello, _)) = bytes.split_first_chunk::<HELLO_BYTES>() else {
            return Ok(None);
        };
        self.greeted = true;
        let theirs = Hello::decode(hello);
        let shares = theirs.is_ok_and(|theirs| theirs.features & FEATURE_SHARED_MEMORY != 0);
        let with_memory = Hello { features: FEATURE_SHARED_MEMORY, ..Hello::CURRENT }.encode();
        if !shares || !self.wire.share(&with_memory, &self.shared_bytes) {
            // Ours goes out even if theirs is of another version, so that both sides can name both.
            self.push(&Hello::CURRENT.encode());
        }
        theirs.map(|_| Some(HELLO_BYTES))
    }

    fn frame(&mut self, bytes: &[u8], turn: &mut Turn<'_>) -> Result<Option<usize>, FrameError> {
        let Some((header, rest)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        let header = Header::decode(header)?;
        let payload = usize::try_from(header.payload_bytes).unwrap_or(usize::MAX);
        let whole = whole_bytes(&header);
        self.after_large = header.kind == Kind::Call && whole > BUFFERED_BYTES_MAX;
        if self.after_large {
            return Ok(Some(self.large_call(header, turn)));
        }
        if bytes.len() < whole {
            return Ok(None);
        }
        let payload = rest.get(..payload).unwrap_or_default();
        match header.kind {
            Kind::Open => {
                let open = Open::decode(payload)?;
                let ended = self.party.open(&header, &open, &mut self.slots);
                self.queue(ended);
            }
            Kind::Call => match self.call(header, turn.now) {
                Ok(call) => {
                    let request = turn.keep(payload);
                    turn.tasks.push(Task::Run(call, request));
                }
                Err(ended) => self.queue(ended),
            },
            Kind::Cancel => self.cancel(header.request_id),
            Kind::Ping => self.push(
                &Header { request_id: header.request_id, ..Header::new(Kind::Pong) }.encode(),
            ),
            kind => return Err(FrameError::WrongDirection(kind)),
        }
        Ok(Some(whole))
    }

    /// Starts a call whose payload is too large to buffer; handles its header only.
    fn large_call(&mut self, header: Header, turn: &mut Turn<'_>) -> usize {
        match self.call(header, turn.now) {
            Ok(call) => {
                self.stage = Stage::AwaitMailbox;
                turn.tasks.push(Task::Begin(call, header.payload_bytes));
            }
            Err(ended) => {
                self.skip_payload(&header);
                self.queue(ended);
            }
        }
        HEADER_BYTES
    }

    fn finish_if_filled(&mut self, tasks: &mut Vec<Task>) {
        let Stage::Fill { begun, filled } = &mut self.stage else { return };
        if *filled < begun.request_mut().len() {
            return;
        }
        let padding = begun.header().padding();
        let next = if padding > 0 { Stage::Skip(padding) } else { Stage::Frames };
        if let Stage::Fill { begun, .. } = mem::replace(&mut self.stage, next) {
            tasks.push(Task::Finish(*begun));
        }
    }

    /// Checks a call's header against its slot and the code that serves now.
    #[expect(clippy::result_large_err, reason = "the error is the reply itself, moved once")]
    fn call(&mut self, header: Header, now: Instant) -> Result<Call, Ended> {
        let refuse = |status: Status| refusal(&header, status, Vec::new());
        let slot = usize::try_from(header.slot).ok().and_then(|at| self.slots.get(at));
        let slot = slot
            .filter(|slot| slot.receptor == header.receptor)
            .ok_or_else(|| refuse(Status::BadSlot))?;
        let serving = self.party.entry.serving().ok_or_else(|| refuse(Status::Gone))?;
        let receptor = serving.interface.receptors().get(usize::from(header.receptor));
        if receptor.map(|receptor| receptor.fingerprint) != Some(slot.fingerprint) {
            return Err(refuse(Status::Gone));
        }
        if header.flags.is_json() && !serving.has_json {
            return Err(refuse(Status::NoJson));
        }
        let reservation = self.party.purse.enter().ok_or_else(|| {
            let message = format!("this user has {CALLS_PER_USER_MAX} calls in flight");
            refusal(&header, Status::Busy, message.into_bytes())
        })?;
        let stop = self.spare_stops.pop().unwrap_or_default();
        self.in_flight.push((header.request_id, stop.clone()));
        Ok(Call {
            header,
            route: Arc::clone(&slot.route),
            reservation,
            started: now,
            deadline: now + serving.call_time_max,
            serving,
            stop,
            lease: None,
        })
    }

    /// Stops a call; the loop's next look at its deadline, or its next slice, ends it.
    fn cancel(&self, request_id: u64) {
        if let Some((_, stop)) = self.in_flight.iter().find(|(id, _)| *id == request_id) {
            stop.cancel();
        }
    }

    fn go_away(&mut self, error: &FrameError) {
        let status = match error {
            FrameError::PayloadTooLarge { .. } => Status::TooLarge,
            _ => Status::BadFrame,
        };
        let message = error.to_string().into_bytes();
        let header = Header { status: status.code(), ..Header::new(Kind::Goaway) };
        let payload_bytes = u32::try_from(message.len()).unwrap_or(0);
        self.queue(Ended {
            header: Header { payload_bytes, ..header },
            payload: Payload::Bytes(message),
        });
        self.pending = Vec::new();
        self.closing = true;
    }

    fn queue(&mut self, ended: Ended) {
        if self.unsent.is_empty() {
            self.progressed = Instant::now();
        }
        self.unsent.queue(ended);
    }

    fn push(&mut self, bytes: &[u8]) {
        if self.unsent.is_empty() {
            self.progressed = Instant::now();
        }
        self.unsent.push(bytes);
    }

    fn send(&mut self) -> bool {
        let sent = self.unsent.send(&mut self.wire);
        if sent.as_ref().is_ok_and(|sent| *sent > 0) {
            self.progressed = Instant::now();
        }
        sent.is_ok() && !(self.closing && self.unsent.is_empty())
    }
}

/// Bytes of a frame: header, payload and padding.
pub(super) fn whole_bytes(header: &Header) -> usize {
    let payload = usize::try_from(header.payload_bytes).unwrap_or(usize::MAX);
    HEADER_BYTES.saturating_add(payload).saturating_add(header.padding())
}
