//! Calls as a loop's tasks: started, polled, and ended with a reply.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use cell_host::StopHandle;
use cell_host::limits::SLICE_FUEL;
use cell_host::price::CALL;
use tokio_util::sync::ReusableBoxFuture;

use super::super::call::{Begun, Ended};
use super::super::turn::Task;
use super::{EventLoop, REQUESTS_KEPT, TaskWaker};

/// What a task's future comes to.
#[expect(clippy::large_enum_variant, reason = "a box would be an allocation for each call")]
pub(super) enum Done {
    /// The reply, and the memory of the request.
    Ended(Ended, Vec<u8>),
    /// A large call has its mailbox, or ended before it had one.
    Begun(Box<Result<Begun, (cell_abi::Header, Ended)>>),
}

/// A place for tasks, one after the other in the same memory.
pub(super) struct Place {
    pub(super) future: ReusableBoxFuture<'static, Done>,
    pub(super) waker: Waker,
    /// `None` while the place is free.
    pub(super) task: Option<Running>,
}

pub(super) struct Running {
    pub(super) connection: usize,
    /// Tells a connection from one that had its place before.
    pub(super) serial: u64,
    pub(super) stop: StopHandle,
    pub(super) deadline: Instant,
    pub(super) queued: bool,
}

async fn drive(task: Task) -> Done {
    match task {
        Task::Run(mut call, request) => Done::Ended(call.run(&request).await, request),
        Task::Begin(call, length) => {
            let header = call.header;
            Done::Begun(Box::new(call.begin(length).await.map_err(|ended| (header, ended))))
        }
        Task::Finish(mut begun) => Done::Ended(begun.finish().await, Vec::new()),
    }
}

impl EventLoop {
    /// Starts a task, and runs its first slice if it may at once; returns what that burned.
    pub(super) fn start(
        &mut self,
        connection: usize,
        serial: u64,
        task: Task,
        at_once: bool,
    ) -> u64 {
        let (stop, deadline) = task.limits();
        let running =
            Some(Running { connection, serial, stop: stop.clone(), deadline, queued: !at_once });
        let at = self.free.pop().unwrap_or(self.running.len());
        match self.running.get_mut(at) {
            Some(place) => {
                place.future.set(drive(task));
                place.task = running;
            }
            None => {
                let waker = TaskWaker { task: at, shared: Arc::clone(&self.shared) };
                self.running.push(Place {
                    future: ReusableBoxFuture::new(drive(task)),
                    waker: Arc::new(waker).into(),
                    task: running,
                });
            }
        }
        if at_once && let Some(burned) = self.poll_task(at) {
            return burned;
        }
        // It may have been started without an event.
        self.watch();
        if at_once {
            return SLICE_FUEL;
        }
        self.queue.push(connection, at);
        0
    }

    /// Goes on with a task from the run queue, and sends what came of it.
    pub(super) fn advance(&mut self, task: usize) {
        let running = self.running.get(task).and_then(|place| place.task.as_ref());
        let connection = running.map(|running| running.connection);
        if self.poll_task(task).is_some()
            && let Some(connection) = connection
        {
            self.settle(connection);
        }
    }

    /// Polls a task once; when it is done, returns what its guest burned, without the call's own
    /// price: that pays for the loop's work, which a turn bounds by its frames.
    pub(super) fn poll_task(&mut self, task: usize) -> Option<u64> {
        let Place { future, waker, task: place } = self.running.get_mut(task)?;
        let running = place.as_mut()?;
        running.queued = false;
        let (connection, serial) = (running.connection, running.serial);
        let Poll::Ready(done) = future.poll(&mut Context::from_waker(waker)) else { return None };
        let burned = match &done {
            Done::Ended(ended, _) => ended.header.fuel.0.saturating_sub(CALL),
            Done::Begun(_) => 0,
        };
        *place = None;
        self.free.push(task);
        let connection = match self.connections.get_mut(connection) {
            Some(Some((connection, own))) if *own == serial => connection,
            _ => {
                // The client is gone; a mailbox that waits for its request is paid and let go.
                if let Done::Begun(begun) = done
                    && let Ok(begun) = *begun
                {
                    begun.abandon();
                }
                return Some(burned);
            }
        };
        match done {
            Done::Ended(ended, request) => {
                connection.end(ended);
                if self.requests.len() < REQUESTS_KEPT {
                    self.requests.push(request);
                }
            }
            Done::Begun(begun) => match *begun {
                Ok(begun) => connection.fill(begun),
                Err((asked, ended)) => connection.refuse_large(&asked, ended),
            },
        }
        Some(burned)
    }
}
