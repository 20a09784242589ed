//! The task that owns an async connection: it writes what is queued and hands answers out.
//!
//! It ends when the connection or the last client does, and knows no deadline: a client that waits
//! no longer sends a cancel.

use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use ::tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use ::tokio::net::UnixStream;
use ::tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use cell_abi::Header;
use rkyv::util::AlignedVec;

use crate::error::Closed;
use crate::outbox::Tail;
use crate::session::Session;

#[derive(Debug)]
pub(super) enum Command {
    Ask {
        header: Header,
        payload: AlignedVec,
        waiter: Waiter,
    },
    /// Stop this call; nobody waits for its answer.
    Cancel(u64),
}

/// Who waits for an answer.
#[derive(Debug)]
pub(super) struct Waiter {
    pub(super) answer: oneshot::Sender<(Header, AlignedVec)>,
    /// The place in the window, which is free again when the server has answered.
    pub(super) permit: OwnedSemaphorePermit,
}

pub(super) struct Driver {
    stream: UnixStream,
    session: Session<Waiter>,
    /// A large payload that is being written; nothing else may come before its end.
    tail: Option<Tail<AlignedVec>>,
    commands: mpsc::Receiver<Command>,
    /// Whether the peer has stopped reading; it may still have something to say.
    deaf: bool,
    window: Arc<Semaphore>,
    closed: Arc<OnceLock<Closed>>,
}

impl Driver {
    pub(super) fn new(
        stream: UnixStream,
        session: Session<Waiter>,
        commands: mpsc::Receiver<Command>,
        window: Arc<Semaphore>,
        closed: Arc<OnceLock<Closed>>,
    ) -> Self {
        Self { stream, session, tail: None, commands, deaf: false, window, closed }
    }

    /// Takes commands until there is enough to write; ends with the last client.
    fn take_commands(&mut self, cx: &mut Context<'_>) -> Result<(), Closed> {
        while self.tail.is_none() && !self.session.outbox.is_full() {
            match self.commands.poll_recv(cx) {
                Poll::Ready(Some(Command::Ask { header, payload, waiter })) => {
                    // A caller that is gone already costs nothing.
                    if !waiter.answer.is_closed() && self.session.ask(&header, &payload, waiter) {
                        self.tail = Some(Tail::new(payload));
                    }
                }
                Poll::Ready(Some(Command::Cancel(id))) => self.session.abandon(id),
                Poll::Ready(None) => return Err(Closed::Disconnected { during: "at its end" }),
                Poll::Pending => break,
            }
        }
        Ok(())
    }

    /// Writes until the socket takes no more or there is nothing left.
    fn write(&mut self, cx: &mut Context<'_>) -> Result<(), Closed> {
        loop {
            self.take_commands(cx)?;
            if self.deaf {
                // What it would take is dropped; the end of the stream follows and says why.
                return Ok(());
            }
            let stream = Pin::new(&mut self.stream);
            let unsent = self.session.outbox.unsent();
            let written = match &self.tail {
                Some(tail) => {
                    let [payload, padding] = tail.parts().map(IoSlice::new);
                    stream.poll_write_vectored(cx, &[IoSlice::new(unsent), payload, padding])
                }
                None if unsent.is_empty() => return Ok(()),
                None => stream.poll_write(cx, unsent),
            };
            match written {
                Poll::Pending => return Ok(()),
                Poll::Ready(Ok(bytes)) => {
                    let of_tail = self.session.outbox.advance(bytes);
                    self.tail.iter_mut().for_each(|tail| tail.advance(of_tail));
                    self.tail.take_if(|tail| tail.is_empty());
                }
                Poll::Ready(Err(error)) => match error.kind() {
                    io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => self.deaf = true,
                    kind => return Err(Closed::Io(kind)),
                },
            }
        }
    }

    /// Reads until there is no more; ready only when the connection is over.
    fn read(&mut self, cx: &mut Context<'_>) -> Poll<Closed> {
        loop {
            let (lacking, free) = self.session.inbox.space();
            let mut buffer = ReadBuf::new(if lacking.is_empty() { free } else { lacking });
            match ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer)) {
                Ok(()) if buffer.filled().is_empty() => {
                    return Poll::Ready(self.session.end_of_stream());
                }
                Ok(()) => {
                    let bytes = buffer.filled().len();
                    self.session.inbox.advance(bytes);
                }
                Err(error) => {
                    return Poll::Ready(match error.kind() {
                        io::ErrorKind::ConnectionReset => self.session.end_of_stream(),
                        kind => Closed::Io(kind),
                    });
                }
            }
            loop {
                match self.session.next() {
                    Ok(Some((waiter, header, payload))) => {
                        drop(waiter.permit);
                        // It may have stopped waiting just now; then the answer is dropped.
                        let _ = waiter.answer.send((header, payload));
                    }
                    Ok(None) => break,
                    Err(closed) => return Poll::Ready(closed),
                }
            }
        }
    }

    fn turn(&mut self, cx: &mut Context<'_>) -> Poll<Closed> {
        if let Err(closed) = self.write(cx) {
            return Poll::Ready(closed);
        }
        self.read(cx)
    }
}

impl Future for Driver {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let closed = ready!(self.turn(cx));
        // First the reason, then the news: whoever wakes up now finds it.
        self.closed.get_or_init(|| closed);
        self.window.close();
        Poll::Ready(())
    }
}
