//! Memory shared with a client that writes to it what it likes, at any moment.

use std::sync::atomic::Ordering::Relaxed;

use cell_client::ring::{Memory, RING_BYTES, Ring, SHARED_BYTES};

use crate::bytes::Bytes;

/// Where both sides' positions are, and whether they wait.
const CONTROLS: [usize; 6] = [0, 8, 16, 128, 136, 144];

/// Reads the bytes as steps of a server and of its client. As long as the client is honest, what
/// either reads is what the other wrote; after its first lie the server is refused, or reads no more
/// than it asked for, and goes on.
pub fn ring(data: &[u8]) {
    let mut steps = Bytes::new(data);
    let (file, mut server) = Ring::create().expect("memory to share");
    let memory = Memory::map(&file, SHARED_BYTES).expect("the same memory");
    let mut client = Ring::attach(&file).expect("the same memory");
    let (mut to_server, mut to_client) = (Stream::default(), Stream::default());
    let mut buffer = vec![0; RING_BYTES + 8];
    let mut honest = true;
    while !steps.is_empty() {
        let (step, length) = (steps.u8(), usize::from(steps.u16()) * 5);
        let (buffer, _) = buffer.split_at_mut(length.min(RING_BYTES + 8));
        match step % 8 {
            0 if honest => to_server.write(&mut client, buffer),
            1 if honest => to_client.read(&mut client, buffer),
            2 => {
                let place = usize::from(steps.u8());
                let lie = u64::from(steps.u32()) | (u64::from(steps.u32()) << 32);
                let place = CONTROLS.into_iter().cycle().nth(place).unwrap_or(0);
                memory.word(place).store(lie, Relaxed);
                honest = false;
            }
            3 => {
                // What is in the rings may change under the server's eyes; no position does.
                let scribble = steps.take(length % 300);
                memory.store(4096 + length, scribble);
                honest &= scribble.is_empty();
            }
            4 if honest => to_client.write(&mut server, buffer),
            5 if honest => to_server.read(&mut server, buffer),
            4 => {
                let _ = server.write(buffer).map(|written| assert!(written <= buffer.len()));
                let _ = server.tell();
            }
            5 => {
                let _ = server.read(buffer).map(|read| assert!(read <= buffer.len()));
            }
            _ => {
                let wait = server.begin_wait(step & 16 == 0, step & 32 == 0);
                assert!(!honest || !wait.sleep || step & 16 != 0 || !server.has_bytes());
                server.end_wait();
            }
        }
    }
}

/// A count of bytes, each of which says where it is in the stream.
#[derive(Debug, Default)]
struct Stream {
    written: usize,
    read: usize,
}

impl Stream {
    fn write(&mut self, ring: &mut Ring, buffer: &mut [u8]) {
        for (at, byte) in buffer.iter_mut().enumerate() {
            *byte = pattern(self.written + at);
        }
        let written = ring.write(buffer).expect("an honest peer");
        let _ = ring.tell();
        // A peer may not know yet of all that was read, but never thinks that there is more room.
        assert!(self.written + written - self.read <= RING_BYTES);
        self.written += written;
    }

    fn read(&mut self, ring: &mut Ring, buffer: &mut [u8]) {
        let read = ring.read(buffer).expect("an honest peer");
        assert!(read <= self.written - self.read);
        for (at, byte) in buffer.iter().take(read).enumerate() {
            assert_eq!(*byte, pattern(self.read + at));
        }
        self.read += read;
        let _ = ring.tell();
    }
}

fn pattern(at: usize) -> u8 {
    (at * 31 % 251).to_le_bytes()[0]
}
