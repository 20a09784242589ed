//! One call from a socket, from admission to the bill.

use std::future::Future;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use cell_abi::frame::{Flags, Header, Kind};
use cell_abi::{AccountId, Fuel, Status};
use cell_host::{CallSpec, Lease, Outcome, StopHandle};

use super::cells::{Cells, Entry};
use super::purse::{Meter, Reservation};
use super::serving::Serving;

/// Where the calls of one slot of a connection go, and who pays.
#[derive(Debug)]
pub(super) struct Route {
    pub(super) cells: Arc<Cells>,
    pub(super) entry: Arc<Entry>,
    pub(super) meter: Arc<Meter>,
    pub(super) payer: AccountId,
    /// Tells its connection from others, so that they take turns.
    pub(super) caller: u64,
}

/// What a call frame asked for, with everything its future needs.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) header: Header,
    pub(super) route: Arc<Route>,
    pub(super) serving: Arc<Serving>,
    pub(super) reservation: Reservation,
    /// When its frame was read.
    pub(super) started: Instant,
    pub(super) deadline: Instant,
    pub(super) stop: StopHandle,
    /// Its instance, from when it has begun until it ends.
    pub(super) lease: Option<Lease>,
}

/// A call that has an instance and a mailbox, and waits for its request.
#[derive(Debug)]
pub(super) struct Begun(Call);

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
    pub(super) async fn run(&mut self, request: &[u8]) -> Ended {
        if let Err(ended) =
            self.reserve_mailbox(u32::try_from(request.len()).unwrap_or(u32::MAX)).await
        {
            return ended;
        }
        if let Some(lease) = &mut self.lease {
            lease.request_mut().copy_from_slice(request);
        }
        self.finish().await
    }

    /// Gets an instance and a mailbox for a request that is still to come.
    pub(super) async fn begin(mut self, request_bytes: u32) -> Result<Begun, Ended> {
        self.reserve_mailbox(request_bytes).await?;
        Ok(Begun(self))
    }

    /// Reserves the limit, takes an instance and asks it for a mailbox.
    // Methods of calls borrow: what they move from future to future is copied each time.
    async fn reserve_mailbox(&mut self, request_bytes: u32) -> Result<(), Ended> {
        let limit = self.header.fuel;
        if self.serving.receipts && self.route.meter.is_full() {
            let message = b"too many calls wait for their receipt".to_vec();
            return Err(self.refuse(Status::Busy, message));
        }
        let reserved = self.reservation.reserve(limit, self.started);
        match until_stopped(&self.stop, reserved).await {
            Err(status) => return Err(self.refuse(status, Vec::new())),
            Ok(Ok(())) => {}
            Ok(Err(free)) => {
                let message = format!(
                    "the call may burn {} ATP but the account has {} ATP; lower the limit, or see `cell ledger balance`",
                    limit.at_base_price(),
                    free.at_base_price()
                );
                return Err(self.refuse(Status::OutOfAtp, message.into_bytes()));
            }
        }
        let checkout = self.serving.checkout(&self.route);
        let lease = match until_stopped(&self.stop, checkout).await {
            Ok(Ok(lease)) => self.lease.insert(lease),
            Ok(Err((status, message))) => return Err(self.refuse(status, message)),
            Err(status) => return Err(self.refuse(status, Vec::new())),
        };
        let mut spec = CallSpec::new(self.route.payer, limit, self.deadline, self.stop.clone());
        spec.caller = self.route.caller;
        spec.began = Some(self.started);
        let begun = lease.begin(spec, request_bytes).await;
        begun.map_err(|outcome| self.end(outcome))
    }

    /// Runs the receptor on the request that was written to the mailbox.
    async fn finish(&mut self) -> Ended {
        let (receptor, json) = (self.header.receptor, self.header.flags.is_json());
        match &mut self.lease {
            Some(lease) => {
                let outcome = lease.finish(receptor, json).await;
                self.end(outcome)
            }
            None => refusal(&self.header, Status::HostFault, Vec::new()),
        }
    }

    /// A reply to a call that did not run and costs nothing.
    fn refuse(&self, status: Status, message: Vec<u8>) -> Ended {
        let Route { cells, entry, .. } = &*self.route;
        entry.count(status, 0, &message);
        // Its code may not even be loaded.
        cells.wake(entry);
        refusal(&self.header, status, message)
    }

    fn end(&mut self, mut outcome: Outcome) -> Ended {
        let Route { cells, entry, meter, .. } = &*self.route;
        self.reservation.pay((meter, self.serving.receipts), &mut outcome);
        entry.count(outcome.status, outcome.own_fuel().0, &outcome.message);
        entry.time(self.started, Instant::now());
        cells.count_callees(&outcome.callees);
        let mut header = reply_header(&self.header, outcome.status, outcome.charge());
        let payload_bytes = if outcome.status == Status::Ok {
            outcome.reply_bytes()
        } else {
            outcome.message.len()
        };
        header.payload_bytes = u32::try_from(payload_bytes).unwrap_or(0);
        let payload = match self.lease.take() {
            Some(lease) if outcome.status == Status::Ok => Payload::Leased(lease, outcome),
            _ => Payload::Bytes(outcome.message),
        };
        Ended { header, payload }
    }
}

impl Begun {
    /// The instance's mailbox, as long as the request.
    pub(super) fn request_mut(&mut self) -> &mut [u8] {
        self.0.lease.as_mut().map(Lease::request_mut).unwrap_or_default()
    }

    /// The header of the frame that asked.
    pub(super) const fn header(&self) -> &Header {
        &self.0.header
    }

    /// What the task that goes on with this call is stopped by.
    pub(super) const fn limits(&self) -> (&StopHandle, Instant) {
        (&self.0.stop, self.0.deadline)
    }

    /// Runs the receptor on the request that was written to the mailbox.
    pub(super) async fn finish(&mut self) -> Ended {
        self.0.finish().await
    }

    /// Ends a call whose request did not come; it pays for the mailbox.
    pub(super) fn abandon(mut self) {
        if let Some(lease) = &mut self.0.lease {
            let outcome = lease.abandon();
            drop(self.0.end(outcome));
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
