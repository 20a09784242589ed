//! The blocking client: one thread, one connection, one call at a time or many.
//!
//! It starts no thread. Deadlines and deadlocks are the business of `link`.

use std::fmt;
use std::mem;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use cell_abi::{CellName, Flags, Fuel, Header, Kind, Message, Receptor};
use rkyv::ser::allocator::Arena;
use rkyv::util::AlignedVec;

use crate::error::Error;
use crate::link::{Done, Link, connect};
use crate::options::{CallOptions, Config, RequestId};
use crate::response::{JsonResponse, RawResponse, Response};
use crate::slot::{ConnectionId, Opening, RawSlot, Slot, parse_name};

/// A buffer for encoded requests that grew past this many bytes is not kept.
pub(crate) const SCRATCH_BYTES_MAX: usize = 4 << 20;

/// A connection to one cell.
///
/// The calls that wait for their answer ([`call`](Self::call), [`call_raw`](Self::call_raw),
/// [`call_json`](Self::call_json)) may be mixed with the ones that do not
/// ([`send_raw`](Self::send_raw), [`receive`](Self::receive)).
///
/// Once the connection is gone, every method says why, each time; connect again to go on.
pub struct Client {
    link: Link,
    cell: CellName,
    connection: ConnectionId,
    config: Config,
    scratch: AlignedVec,
    arena: Arena,
}

impl Client {
    /// Connects to the socket of the cell with this name, with the default [`Config`].
    ///
    /// Nothing is sent before the first [`open`](Self::open), so a nucleus of another version is
    /// found then; but where memory is to be shared, it is asked for here.
    pub fn connect(path: impl AsRef<Path>, cell: &str) -> Result<Self, Error> {
        Self::connect_with(path, cell, Config::default())
    }

    /// Connects to the socket of the cell with this name.
    pub fn connect_with(path: impl AsRef<Path>, cell: &str, config: Config) -> Result<Self, Error> {
        let cell = parse_name(cell, CellName::parse)?;
        Self::new(connect(path.as_ref(), config.timeout)?, cell, config)
    }

    /// Speaks to the cell with this name over a stream that is connected already.
    pub fn from_stream(stream: UnixStream, cell: &str, config: Config) -> Result<Self, Error> {
        Self::new(stream, parse_name(cell, CellName::parse)?, config)
    }

    fn new(stream: UnixStream, cell: CellName, config: Config) -> Result<Self, Error> {
        let mut link = Link::new(stream, config).map_err(|error| Error::Io(error.kind()))?;
        if config.shared_memory {
            link.share_memory(config)?;
        }
        Ok(Self {
            link,
            cell,
            connection: ConnectionId::next(),
            config,
            scratch: AlignedVec::new(),
            arena: Arena::new(),
        })
    }

    /// Opens a receptor; a cell built against other types is [`Error::SchemaMismatch`].
    pub fn open<R: Receptor>(&mut self) -> Result<Slot<R>, Error> {
        self.opening(Opening::typed::<R>(&self.cell)?).map(Slot::new)
    }

    /// Opens a receptor of any type, to be called with bytes or JSON.
    pub fn open_raw(&mut self, receptor: &str) -> Result<RawSlot, Error> {
        self.opening(Opening::untyped(&self.cell, receptor)?)
    }

    /// Calls a receptor and waits for its answer.
    pub fn call<R: Receptor>(
        &mut self,
        slot: &Slot<R>,
        request: &R::Input,
        options: CallOptions,
    ) -> Result<Response<R::Output>, Error> {
        let bytes = self.encode(request)?;
        let response = self.call_raw(slot.raw(), &bytes, options);
        if bytes.capacity() <= SCRATCH_BYTES_MAX {
            self.scratch = bytes;
        }
        response?.into_typed()
    }

    /// Calls a receptor with the bytes of an archived value and waits for its answer.
    pub fn call_raw(
        &mut self,
        slot: &RawSlot,
        request: &[u8],
        options: CallOptions,
    ) -> Result<RawResponse, Error> {
        self.call_flagged(slot, request, Flags::NONE, options)
    }

    /// Like [`call_raw`](Self::call_raw), but the reply's bytes come into a buffer of the caller's,
    /// whose memory is reused; says what the call burned. After an error the buffer is empty.
    pub fn call_raw_into(
        &mut self,
        slot: &RawSlot,
        request: &[u8],
        options: CallOptions,
        reply: &mut AlignedVec,
    ) -> Result<Fuel, Error> {
        self.recycle(mem::take(reply));
        let response = self.call_raw(slot, request, options)?;
        let fuel = response.fuel();
        *reply = response.into_bytes();
        Ok(fuel)
    }

    /// Calls a receptor with JSON, which the cell converts, and waits for its answer.
    pub fn call_json(
        &mut self,
        slot: &RawSlot,
        request: &str,
        options: CallOptions,
    ) -> Result<JsonResponse, Error> {
        self.call_flagged(slot, request.as_bytes(), Flags::JSON, options)?.into_json()
    }

    /// Starts a call; [`receive`](Self::receive) gives its answer.
    ///
    /// It is sent when enough has come together, at [`flush`](Self::flush), or when `receive` has
    /// to wait. Its time starts now. At most [`CALLS_IN_FLIGHT_MAX`](crate::CALLS_IN_FLIGHT_MAX)
    /// may be under way: one more is [`Error::WindowFull`] until an answer was received.
    pub fn send_raw(
        &mut self,
        slot: &RawSlot,
        request: &[u8],
        options: CallOptions,
    ) -> Result<RequestId, Error> {
        let header = slot.call(self.connection, request, Flags::NONE, options.fuel)?;
        self.link.ask(header, request, options.timeout, false).map(RequestId)
    }

    /// Sends all calls that were started.
    pub fn flush(&mut self) -> Result<(), Error> {
        self.link.flush(self.config.timeout)
    }

    /// Waits for the end of any call that was started, in whatever order they end.
    ///
    /// The inner result is how that call ended; the outer one fails if the connection did, or with
    /// [`Error::NothingInFlight`].
    pub fn receive(&mut self) -> Result<(RequestId, Result<RawResponse, Error>), Error> {
        let done = self.link.wait_any()?;
        Ok((RequestId(done.id), self.reply(done)))
    }

    /// Asks the nucleus to stop a call that was started; `receive` still gives its end.
    pub fn cancel(&mut self, call: RequestId) -> Result<(), Error> {
        self.link.session.cancel(call.0);
        self.flush()
    }

    /// Asks the nucleus for a sign of life.
    pub fn ping(&mut self) -> Result<(), Error> {
        let id = self.link.ask(Header::new(Kind::Ping), &[], self.config.timeout, true)?;
        self.link.wait(id)?.answer.map(drop).ok_or(Error::TimedOut)
    }

    /// Takes a reply back, so that its memory holds a later one.
    pub fn recycle(&mut self, reply: impl Into<AlignedVec>) {
        self.link.session.inbox.recycle(reply.into());
    }

    /// Whether frames go through memory that the server shares.
    pub const fn shares_memory(&self) -> bool {
        self.link.shares_memory()
    }

    /// The cell this connection leads to.
    pub const fn cell(&self) -> &CellName {
        &self.cell
    }

    fn opening(&mut self, opening: Opening) -> Result<RawSlot, Error> {
        let (header, payload) = opening.frame();
        let id = self.link.ask(header, &payload, self.config.timeout, true)?;
        let (header, payload) = self.link.wait(id)?.answer.ok_or(Error::TimedOut)?;
        opening.opened(self.connection, &header, &payload)
    }

    fn call_flagged(
        &mut self,
        slot: &RawSlot,
        request: &[u8],
        flags: Flags,
        options: CallOptions,
    ) -> Result<RawResponse, Error> {
        let header = slot.call(self.connection, request, flags, options.fuel)?;
        let id = self.link.ask(header, request, options.timeout, true)?;
        let done = self.link.wait(id)?;
        self.reply(done)
    }

    fn reply(&self, done: Done) -> Result<RawResponse, Error> {
        let (header, payload) = done.answer.ok_or(Error::TimedOut)?;
        RawResponse::from_reply(&header, payload, self.link.session.reply_bytes_max)
    }

    /// Like `cell_abi::schema::encode`, with memory that is used again.
    fn encode<T: Message>(&mut self, message: &T) -> Result<AlignedVec, Error> {
        let mut buffer = mem::take(&mut self.scratch);
        buffer.clear();
        rkyv::api::high::to_bytes_in_with_alloc(message, buffer, self.arena.acquire())
            .map_err(Error::InvalidRequest)
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("cell", &self.cell).finish_non_exhaustive()
    }
}

/// A connection to one receptor of a cell.
///
/// ```no_run
/// # fn example<Greet: cell_client::Receptor<Input = String, Output = String>>() -> Result<(), cell_client::Error> {
/// let mut greet = cell_client::TypedClient::<Greet>::connect("cells/hello/cell.sock", "hello")?;
/// let reply = greet.call(&"Ada".to_owned())?;
/// println!("{} for {} fuel", reply.archived(), reply.fuel());
/// # Ok(())
/// # }
/// ```
pub struct TypedClient<R> {
    client: Client,
    slot: Slot<R>,
    options: CallOptions,
}

impl<R: Receptor> TypedClient<R> {
    /// Connects to the socket of the cell with this name and opens the receptor.
    pub fn connect(path: impl AsRef<Path>, cell: &str) -> Result<Self, Error> {
        Self::from_client(Client::connect(path, cell)?)
    }

    /// Opens the receptor on a connection.
    pub fn from_client(mut client: Client) -> Result<Self, Error> {
        let slot = client.open::<R>()?;
        Ok(Self { client, slot, options: CallOptions::default() })
    }

    /// Sets what each call may burn.
    #[must_use]
    pub fn with_fuel(mut self, fuel: Fuel) -> Self {
        self.options.fuel = fuel;
        self
    }

    /// Sets what time each call may take.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.options.timeout = timeout;
        self
    }

    /// Calls the receptor and waits for its answer.
    pub fn call(&mut self, request: &R::Input) -> Result<Response<R::Output>, Error> {
        self.client.call(&self.slot, request, self.options)
    }

    /// Takes a reply back, so that its memory holds a later one.
    pub fn recycle(&mut self, reply: Response<R::Output>) {
        self.client.recycle(reply);
    }
}

impl<R> fmt::Debug for TypedClient<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TypedClient")
            .field("client", &self.client)
            .field("slot", &self.slot)
            .field("options", &self.options)
            .finish()
    }
}
