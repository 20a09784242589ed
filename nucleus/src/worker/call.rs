//! One call from a socket, from admission to the bill.

use std::future::Future;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use cell_abi::frame::{Flags, Header, Kind};
use cell_abi::{AccountId, Fuel, Status};
use cell_host::{CallSpec, Lease, Outcome, StopHandle};

use super::cells::{Cells, Entry, Serving};
use super::purse::{InFlight, Meter, Purse, Reservation};

/// What a call frame asked for, with everything its future needs.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) header: Header,
    pub(super) cells: Arc<Cells>,
    pub(super) entry: Arc<Entry>,
    pub(super) serving: Arc<Serving>,
    pub(super) purse: Arc<Purse>,
    pub(super) meter: Arc<Meter>,
    pub(super) payer: AccountId,
    /// When its frame was read.
    pub(super) started: Instant,
    pub(super) deadline: Instant,
    pub(super) stop: StopHandle,
    /// Tells its connection from others, so that they take turns.
    pub(super) caller: u64,
    /// Counts the call for its user.
    pub(super) _in_flight: InFlight,
}

/// A call that has an instance and a mailbox, and waits for its request.
#[derive(Debug)]
pub(super) struct Begun {
    call: Call,
    lease: Lease,
    reservation: Option<Reservation>,
}

/// How a call ended: the header of its reply, and the payload.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) header: Header,
    pub(super) payload: Payload,
}

/// Where a reply's payload lies.
#[derive(Debug)]
pub(super) enum Payload {
    Bytes(Vec<u8>),
    /// In the instance's memory; the lease keeps it there.
    Leased(Lease, Outcome),
}

impl Payload {
    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Leased(lease, outcome) => lease.reply(outcome),
        }
    }
}

impl Call {
    /// Runs a call whose request is at hand.
    pub(super) async fn run(self, request: Vec<u8>) -> Ended {
        match self.begin(u32::try_from(request.len()).unwrap_or(u32::MAX)).await {
            Ok(mut begun) => {
                begun.request_mut().copy_from_slice(&request);
                begun.finish().await
            }
            Err(ended) => ended,
        }
    }

    /// Reserves the limit, takes an instance and asks it for a mailbox.
    pub(super) async fn begin(self, request_bytes: u32) -> Result<Begun, Ended> {
        let limit = self.header.fuel;
        let reservation = match until_stopped(&self.stop, self.purse.reserve(limit)).await {
            Err(status) => return Err(self.refuse(status, Vec::new())),
            Ok(Ok(reservation)) => reservation,
            Ok(Err(free)) => {
                let message = format!(
                    "the call may burn {} ATP but the account has {} ATP; lower the limit, or see `cell ledger balance`",
                    limit.at_base_price(),
                    free.at_base_price()
                );
                return Err(self.refuse(Status::OutOfAtp, message.into_bytes()));
            }
        };
        let checkout = async { self.serving.cell(&self.cells).await?.checkout(self.caller).await };
        let mut lease = match until_stopped(&self.stop, checkout).await {
            Ok(Ok(lease)) => lease,
            Ok(Err((status, message))) => return Err(self.refuse(status, message)),
            Err(status) => return Err(self.refuse(status, Vec::new())),
        };
        let mut spec = CallSpec::new(self.payer, limit, self.deadline, self.stop.clone());
        spec.caller = self.caller;
        match lease.begin(spec, request_bytes).await {
            Ok(()) => Ok(Begun { call: self, lease, reservation: Some(reservation) }),
            Err(outcome) => Err(self.end(lease, outcome, reservation)),
        }
    }

    /// A reply to a call that did not run and costs nothing.
    pub(super) fn refuse(self, status: Status, message: Vec<u8>) -> Ended {
        self.entry.count(status, 0, &message);
        // Its code may not even be loaded.
        self.cells.wake(&self.entry);
        refusal(&self.header, status, message)
    }

    fn end(self, lease: Lease, outcome: Outcome, reservation: Reservation) -> Ended {
        reservation.pay(&self.meter, outcome.fuel, &outcome.callees);
        self.entry.count(outcome.status, outcome.own_fuel().0, &outcome.message);
        self.entry.time(self.started, Instant::now());
        self.cells.count_callees(&outcome.callees);
        let mut header = reply_header(&self.header, outcome.status, outcome.fuel);
        let payload = match outcome.status {
            Status::Ok => Payload::Leased(lease, outcome),
            _ => Payload::Bytes(outcome.message),
        };
        header.payload_bytes = u32::try_from(payload.bytes().len()).unwrap_or(0);
        Ended { header, payload }
    }
}

impl Begun {
    /// The instance's mailbox, as long as the request.
    pub(super) fn request_mut(&mut self) -> &mut [u8] {
        self.lease.request_mut()
    }

    /// The header of the frame that asked.
    pub(super) const fn header(&self) -> &Header {
        &self.call.header
    }

    /// What the task that goes on with this call is stopped by.
    pub(super) const fn limits(&self) -> (&StopHandle, Instant) {
        (&self.call.stop, self.call.deadline)
    }

    /// Runs the receptor on the request that was written to the mailbox.
    pub(super) async fn finish(mut self) -> Ended {
        let (receptor, json) = (self.call.header.receptor, self.call.header.flags.is_json());
        let outcome = self.lease.finish(receptor, json).await;
        match self.reservation.take() {
            Some(reservation) => self.call.end(self.lease, outcome, reservation),
            None => refusal(&self.call.header, Status::HostFault, Vec::new()),
        }
    }

    /// Ends a call whose request did not come; it pays for the mailbox.
    pub(super) fn abandon(mut self) {
        let outcome = self.lease.abandon();
        if let Some(reservation) = self.reservation.take() {
            drop(self.call.end(self.lease, outcome, reservation));
        }
    }
}

/// Waits for something before the guest runs; the loop polls stopped calls, so a stop is seen.
async fn until_stopped<F: Future>(stop: &StopHandle, future: F) -> Result<F::Output, Status> {
    let mut future = std::pin::pin!(future);
    std::future::poll_fn(|cx| match stop.status() {
        Some(status) => Poll::Ready(Err(status)),
        None => future.as_mut().poll(cx).map(Ok),
    })
    .await
}

/// A reply to a request that never became a call.
pub(super) fn refusal(asked: &Header, status: Status, message: Vec<u8>) -> Ended {
    let mut header = reply_header(asked, status, Fuel::ZERO);
    header.payload_bytes = u32::try_from(message.len()).unwrap_or(0);
    Ended { header, payload: Payload::Bytes(message) }
}

const fn reply_header(asked: &Header, status: Status, fuel: Fuel) -> Header {
    let kind = match asked.kind {
        Kind::Open => Kind::Opened,
        _ => Kind::Reply,
    };
    Header {
        receptor: asked.receptor,
        request_id: asked.request_id,
        slot: asked.slot,
        status: status.code(),
        fuel,
        flags: match (asked.flags.is_json(), status) {
            (true, Status::Ok) => Flags::JSON,
            _ => Flags::NONE,
        },
        ..Header::new(kind)
    }
}
