use std::thread;

use super::*;

fn pair() -> (Ring, Ring) {
    let (file, server) = Ring::create().expect("memory");
    (Ring::attach(file).expect("the same memory"), server)
}

#[test]
fn bytes_come_out_as_they_went_in() {
    let (mut client, mut server) = pair();
    let sent: Vec<u8> = (0..3 * RING_BYTES).map(|at| (at * 31 % 251).to_le_bytes()[0]).collect();
    let (mut got, mut buffer, mut at) = (Vec::new(), vec![0; RING_BYTES], 0);
    // Lengths that never fit words, so that every edge is met.
    for step in (1..).map(|n| n * 7919 % 40_009) {
        let part = &sent[at..(at + step).min(sent.len())];
        at += client.write(part).expect("a room");
        assert!(!client.tell(), "nobody waits");
        let read = server.read(&mut buffer[..step]).expect("some bytes");
        got.extend_from_slice(&buffer[..read]);
        let _ = server.tell();
        if got.len() == sent.len() {
            break;
        }
    }
    assert!(got == sent);
    assert_eq!(server.read(&mut buffer), Ok(0));
    assert!(!server.has_bytes());
}

#[test]
fn a_full_ring_takes_no_more_until_it_is_read() {
    let (mut client, mut server) = pair();
    assert_eq!(client.write(&vec![1; RING_BYTES + 5]), Ok(RING_BYTES));
    assert_eq!((client.write(&[1]), client.has_room()), (Ok(0), false));
    let _ = client.tell();
    let mut some = vec![0; RING_BYTES / 4];
    assert_eq!(server.read(&mut some), Ok(RING_BYTES / 4));
    let _ = server.tell();
    assert!(client.has_room());
    assert_eq!(client.write(&vec![2; RING_BYTES]), Ok(RING_BYTES / 4));
}

/// Who announced that it waits is woken by what came after, and does not sleep over what came before.
#[test]
fn no_wake_is_lost() {
    let (mut client, mut server) = pair();
    assert_eq!(server.begin_wait(true, false), Wait { ring: false, sleep: true });
    client.write(b"a").expect("room");
    assert!(client.tell(), "the server waits");
    assert!(!client.tell(), "once is enough");
    server.end_wait();
    assert_eq!(server.begin_wait(true, false), Wait { ring: false, sleep: false });
    assert_eq!(server.read(&mut [0; 8]), Ok(1));
    // It waits for room: the peer must be told what was read, and be woken.
    client.write(&vec![0; RING_BYTES]).expect("room for most");
    assert!(!client.tell());
    assert_eq!(client.begin_wait(true, true), Wait { ring: false, sleep: true });
    assert_eq!(server.read(&mut [0; 8]), Ok(8));
    assert!(!server.tell(), "so few are not told");
    assert!(server.begin_wait(true, false).ring, "before it sleeps it tells");
}

#[test]
fn threads_that_sleep_and_wake_pass_everything_on() {
    let (mut client, mut server) = pair();
    let (bell, heard) = std::sync::mpsc::channel();
    let total: u64 = 4 << 20;
    let writer = thread::spawn(move || {
        let mut sent = 0_u64;
        while sent < total {
            let bytes: Vec<u8> =
                (sent..(sent + 977).min(total)).map(|at| at.to_le_bytes()[0]).collect();
            let written = client.write(&bytes).expect("an honest peer");
            sent += written as u64;
            if client.tell() {
                let _ = bell.send(());
            }
            if written == 0 {
                thread::yield_now();
            }
        }
        // The last bell may be needed after the last byte.
        let _ = bell.send(());
    });
    let (mut read, mut buffer) = (0_u64, vec![0; 1500]);
    while read < total {
        let count = server.read(&mut buffer).expect("an honest peer");
        for byte in &buffer[..count] {
            assert_eq!(*byte, read.to_le_bytes()[0]);
            read += 1;
        }
        let _ = server.tell();
        if count == 0 && server.begin_wait(true, false).sleep {
            heard.recv().expect("a bell for what was written");
            server.end_wait();
        }
    }
    writer.join().expect("a writer");
}

/// The peer may write anything at any time: positions that cannot be are found, others change what
/// is read and nothing else.
#[test]
fn lies_are_found() {
    let (mut client, mut server) = pair();
    for lie in [RING_BYTES as u64 + 1, u64::MAX, 1 << 63] {
        client.mine(WRITTEN).store(lie, Release);
        assert!(server.has_bytes());
        assert_eq!(server.read(&mut [0; 64]), Err(Impossible));
    }
    client.mine(WRITTEN).store(0, Release);
    server.write(&vec![0; RING_BYTES]).expect("room");
    // The last one seems to be just behind what was written, where positions wrap.
    for lie in [RING_BYTES as u64 + 1, u64::MAX / 2, u64::MAX] {
        client.mine(READ).store(lie, Release);
        assert_eq!(server.write(&[0]), Err(Impossible));
        // Nothing of it is kept: looking for room does not go wrong later.
        assert!(server.has_room());
    }
    client.mine(READ).store(0, Release);
    assert!(!server.has_room());
    assert_eq!(client.read(&mut [0; 8]), Ok(0), "the server has told nothing yet");
}

#[test]
fn memory_that_could_shrink_is_not_taken() {
    let loose = rustix::fs::memfd_create("loose", MemfdFlags::ALLOW_SEALING).expect("a file");
    rustix::fs::ftruncate(&loose, SHARED_BYTES as u64).expect("a size");
    assert!(Ring::attach(&loose).is_err(), "not sealed");
    let small = rustix::fs::memfd_create("small", MemfdFlags::ALLOW_SEALING).expect("a file");
    rustix::fs::fcntl_add_seals(&small, SealFlags::SHRINK).expect("a seal");
    assert!(Ring::attach(&small).is_err(), "too small");
    let (file, _server) = Ring::create().expect("memory");
    assert!(rustix::fs::ftruncate(&file, 0).is_err(), "ours cannot shrink");
}
