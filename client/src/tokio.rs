//! The async client: many tasks share one connection.
//!
//! A task of its own (see `driver`) owns the socket; the client hands it requests through a queue.
//! It needs a tokio runtime with I/O and time enabled, and starts no runtime itself.

mod driver;

use std::fmt;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use ::tokio::net::UnixStream;
use ::tokio::sync::{Semaphore, mpsc, oneshot};
use ::tokio::task::spawn_blocking;
use ::tokio::time::timeout;
use cell_abi::{CellName, Flags, Fuel, Header, Kind, Receptor, schema};
use rkyv::util::AlignedVec;

use self::driver::{Command, Driver, Waiter};
use crate::error::{Closed, Error};
use crate::link;
use crate::options::{CALLS_IN_FLIGHT_MAX, CallOptions, Config};
use crate::response::{JsonResponse, RawResponse, Response};
use crate::session::Session;
use crate::slot::{ConnectionId, Opening, RawSlot, Slot, parse_name};

/// Requests and cancels that may wait to be written. Each of the 256 places in the window can have
/// one request and one cancel in the queue, and one cancel of the call that had the place before.
pub(crate) const QUEUE_MAX: usize = 4 * CALLS_IN_FLIGHT_MAX;

/// A connection to one cell, shared by all clones of this client.
///
/// Dropping the future of a call cancels the call. At most
/// [`CALLS_IN_FLIGHT_MAX`] calls are under way; more wait their turn,
/// within their time limit. When the connection is lost, every pending call ends at once with the
/// reason, and so does every later one. Dropping the last clone closes the connection.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

struct Shared {
    cell: CellName,
    connection: ConnectionId,
    config: Config,
    queue: mpsc::Sender<Command>,
    window: Arc<Semaphore>,
    closed: Arc<OnceLock<Closed>>,
    next_id: AtomicU64,
}

impl Client {
    /// Connects to the socket of the cell with this name, with the default [`Config`].
    pub async fn connect(path: impl AsRef<Path>, cell: &str) -> Result<Self, Error> {
        Self::connect_with(path, cell, Config::default()).await
    }

    /// Connects to the socket of the cell with this name.
    pub async fn connect_with(
        path: impl AsRef<Path>,
        cell: &str,
        config: Config,
    ) -> Result<Self, Error> {
        let cell = parse_name(cell, CellName::parse)?;
        let path = path.as_ref().to_owned();
        // A full backlog makes connect wait, which an event loop cannot watch.
        let stream = spawn_blocking(move || link::connect(&path, config.timeout))
            .await
            .map_err(|_| Error::Disconnected { during: "as the runtime shut down" })??;
        Self::new(stream, cell, config)
    }

    /// Speaks to the cell with this name over a stream that is connected already.
    ///
    /// Panics outside of a tokio runtime with I/O enabled.
    pub fn from_stream(stream: StdUnixStream, cell: &str, config: Config) -> Result<Self, Error> {
        Self::new(stream, parse_name(cell, CellName::parse)?, config)
    }

    fn new(stream: StdUnixStream, cell: CellName, config: Config) -> Result<Self, Error> {
        let stream = stream
            .set_nonblocking(true)
            .and_then(|()| UnixStream::from_std(stream))
            .map_err(|error| Error::Io(error.kind()))?;
        let (queue, commands) = mpsc::channel(QUEUE_MAX);
        let window = Arc::new(Semaphore::new(CALLS_IN_FLIGHT_MAX));
        let closed = Arc::new(OnceLock::new());
        let session = Session::new(config.reply_bytes_max);
        ::tokio::spawn(Driver::new(stream, session, commands, window.clone(), closed.clone()));
        let (connection, next_id) = (ConnectionId::next(), AtomicU64::new(0));
        let shared = Shared { cell, connection, config, queue, window, closed, next_id };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Opens a receptor; a cell built against other types is [`Error::SchemaMismatch`].
    pub async fn open<R: Receptor>(&self) -> Result<Slot<R>, Error> {
        self.opening(Opening::typed::<R>(&self.shared.cell)?).await.map(Slot::new)
    }

    /// Opens a receptor of any type, to be called with bytes or JSON.
    pub async fn open_raw(&self, receptor: &str) -> Result<RawSlot, Error> {
        self.opening(Opening::untyped(&self.shared.cell, receptor)?).await
    }

    /// Opens a receptor whose types are known by their schema only; a cell built against others is
    /// [`Error::SchemaMismatch`].
    pub async fn open_schema(&self, receptor: &str, schema: &str) -> Result<RawSlot, Error> {
        self.opening(Opening::of_schema(&self.shared.cell, receptor, schema)?).await
    }

    /// Calls a receptor.
    pub async fn call<R: Receptor>(
        &self,
        slot: &Slot<R>,
        request: &R::Input,
        options: CallOptions,
    ) -> Result<Response<R::Output>, Error> {
        let bytes = schema::encode(request).map_err(Error::InvalidRequest)?;
        self.call_flagged(slot.raw(), bytes, Flags::NONE, options).await?.into_typed()
    }

    /// Calls a receptor with the bytes of an archived value, which are copied once.
    pub async fn call_raw(
        &self,
        slot: &RawSlot,
        request: &[u8],
        options: CallOptions,
    ) -> Result<RawResponse, Error> {
        self.call_flagged(slot, copy(request), Flags::NONE, options).await
    }

    /// Calls a receptor with JSON, which the cell converts.
    pub async fn call_json(
        &self,
        slot: &RawSlot,
        request: &str,
        options: CallOptions,
    ) -> Result<JsonResponse, Error> {
        self.call_flagged(slot, copy(request.as_bytes()), Flags::JSON, options).await?.into_json()
    }

    /// Asks the nucleus for a sign of life.
    pub async fn ping(&self) -> Result<(), Error> {
        let limit = self.shared.config.timeout;
        self.ask(Header::new(Kind::Ping), AlignedVec::new(), limit).await.map(drop)
    }

    /// Whether the connection is over, so that every call fails without having been made.
    pub fn is_closed(&self) -> bool {
        self.shared.closed.get().is_some()
    }

    /// The cell this connection leads to.
    pub fn cell(&self) -> &CellName {
        &self.shared.cell
    }

    async fn opening(&self, opening: Opening) -> Result<RawSlot, Error> {
        let (header, payload) = opening.frame();
        let limit = self.shared.config.timeout;
        let (header, payload) = self.ask(header, copy(&payload), limit).await?;
        opening.opened(self.shared.connection, &header, &payload)
    }

    async fn call_flagged(
        &self,
        slot: &RawSlot,
        request: AlignedVec,
        flags: Flags,
        options: CallOptions,
    ) -> Result<RawResponse, Error> {
        let Shared { connection, config, .. } = *self.shared;
        let header = slot.call(connection, &request, flags, options.fuel)?;
        let (header, payload) = self.ask(header, request, options.timeout).await?;
        RawResponse::from_reply(&header, payload, config.reply_bytes_max)
    }

    /// Sends a request, whose id is filled in here, and waits for its answer.
    async fn ask(
        &self,
        header: Header,
        payload: AlignedVec,
        limit: Duration,
    ) -> Result<(Header, AlignedVec), Error> {
        let shared = &*self.shared;
        let exchange = async {
            let permit = shared.window.clone().acquire_owned().await.map_err(|_| shared.gone())?;
            let id = shared.next_id.fetch_add(1, Ordering::Relaxed);
            let (answer, answered) = oneshot::channel();
            let command = Command::Ask {
                header: Header { request_id: id, ..header },
                payload,
                waiter: Waiter { answer, permit },
            };
            shared.queue.send(command).await.map_err(|_| shared.gone())?;
            let mut cancel = CancelOnDrop { queue: &shared.queue, id: Some(id) };
            let answer = answered.await.map_err(|_| shared.gone());
            cancel.id = None;
            answer
        };
        timeout(limit, exchange).await.map_err(|_| Error::TimedOut)?
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("cell", &self.shared.cell).finish_non_exhaustive()
    }
}

impl Shared {
    /// Why the driver has ended.
    fn gone(&self) -> Error {
        let closed = self.closed.get().cloned();
        closed.unwrap_or(Closed::Disconnected { during: "as the runtime shut down" }).into()
    }
}

struct CancelOnDrop<'a> {
    queue: &'a mpsc::Sender<Command>,
    id: Option<u64>,
}

impl Drop for CancelOnDrop<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            // The queue has room for it, see QUEUE_MAX, or it is closed and there is nothing to do.
            let _ = self.queue.try_send(Command::Cancel(id));
        }
    }
}

/// A connection to one receptor of a cell, shared by all clones of this client.
pub struct TypedClient<R> {
    client: Client,
    slot: Slot<R>,
    options: CallOptions,
}

impl<R: Receptor> TypedClient<R> {
    /// Connects to the socket of the cell with this name and opens the receptor.
    pub async fn connect(path: impl AsRef<Path>, cell: &str) -> Result<Self, Error> {
        Self::from_client(Client::connect(path, cell).await?).await
    }

    /// Opens the receptor on a connection.
    pub async fn from_client(client: Client) -> Result<Self, Error> {
        let slot = client.open::<R>().await?;
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

    /// Calls the receptor.
    pub async fn call(&self, request: &R::Input) -> Result<Response<R::Output>, Error> {
        self.client.call(&self.slot, request, self.options).await
    }
}

impl<R> Clone for TypedClient<R> {
    fn clone(&self) -> Self {
        Self { client: self.client.clone(), slot: self.slot.clone(), options: self.options }
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

fn copy(bytes: &[u8]) -> AlignedVec {
    let mut copy = AlignedVec::with_capacity(bytes.len());
    copy.extend_from_slice(bytes);
    copy
}
