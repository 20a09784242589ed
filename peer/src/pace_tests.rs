use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;

use super::*;
use crate::tests::sessions;
use crate::{Records, tunnel};

fn bucket(bytes_per_s: u64) -> Bucket {
    Bucket::new(NonZeroU64::new(bytes_per_s).unwrap())
}

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Asks again and again: when, for how much, and then how much at what time.
#[track_caller]
fn check(bytes_per_s: u64, asked: &[(u64, usize)], expect: &[(usize, u64)]) {
    let mut bucket = bucket(bytes_per_s);
    let given = asked.iter().map(|(now, most)| bucket.take(ms(*now), *most));
    let given: Vec<_> =
        given.map(|(bytes, at)| (bytes, u64::try_from(at.as_millis()).unwrap())).collect();
    assert_eq!(given, expect);
}

#[test]
fn turns() {
    let all = usize::MAX;
    // After silence a tenth of a second's bytes at once, and then one after another.
    check(64_000, &[(5000, 6400); 3], &[(4096, 4900), (4096, 4964), (4096, 5028)]);
    check(160_000, &[(0, all), (0, all), (0, all)], &[(10_000, 0), (10_000, 62), (10_000, 125)]);
    // Who asks for little waits little.
    check(100_000, &[(0, 1000), (0, 1000), (0, 100)], &[(1000, 0), (1000, 10), (100, 20)]);
    // What nobody used is not kept for long.
    check(
        100_000,
        &[(0, 1000), (90_000, 6000), (90_000, 6000)],
        &[(1000, 0), (6000, 89_900), (6000, 89_960)],
    );
    // However fast, a turn is a record at most; however slow, it is worth its while.
    check(u64::MAX, &[(0, all), (0, all)], &[(65_535, 0), (65_535, 0)]);
    check(1000, &[(0, all), (0, all)], &[(4096, 0), (4096, 4096)]);
    check(1, &[(0, 7), (0, 1)], &[(7, 0), (1, 7000)]);
}

#[test]
fn what_is_left_is_for_the_next() {
    let mut bucket = bucket(100_000);
    let at = |bucket: &mut Bucket| bucket.take(ms(0), 1000).1;
    assert_eq!(at(&mut bucket), ms(0));
    bucket.settle(900, 0);
    assert_eq!(at(&mut bucket), ms(1));
    // What goes with it counts.
    bucket.settle(0, 100);
    assert_eq!(at(&mut bucket), ms(12));
    // More than everything was left: time does not run backwards.
    bucket.settle(usize::MAX, 0);
    assert_eq!(at(&mut bucket), ms(0));
}

/// However sessions ask, in any stretch of time no more goes than the pace allows, a burst and a turn of each.
#[test]
fn never_faster() {
    for rate in [64 << 10, 1 << 20, 100 << 20] {
        let mut bucket = bucket(rate);
        let (mut now, mut given) = (Duration::ZERO, Vec::new());
        for step in 0..10_000_u64 {
            // Sometimes in a hurry, sometimes after a while.
            now += Duration::from_micros(step * 7919 % 3000);
            let most = usize::try_from(step * 104_729 % 70_000).unwrap() + 1;
            let (bytes, at) = bucket.take(now, most);
            let read = bytes - bytes * usize::from(step % 5 == 0) / 2;
            bucket.settle(bytes - read, 0);
            given.push((at.max(now), read as u64));
        }
        for start in (0..given.len()).step_by(97) {
            let mut sum = 0;
            for (at, bytes) in &given[start..] {
                sum += bytes;
                let nanos = (at.saturating_sub(given[start].0) + BURST).as_nanos();
                let most = nanos * u128::from(rate) / 1_000_000_000;
                let most = most + u128::from(2 * TURN_BYTES_MAX);
                assert!(u128::from(sum) <= most, "{rate}: {sum} bytes in {nanos} ns");
            }
        }
    }
}

#[test]
fn a_pace_is_set_and_lifted() {
    let pace = Pace::default();
    assert_eq!(pace.turn(Way::FromPeer, 100), None);
    let now = Instant::now();
    pace.set(NonZeroU64::new(10));
    let turns = [(); 2].map(|()| pace.turn(Way::ToPeer, 100).unwrap());
    assert!(turns[1].at >= now + Duration::from_secs(9), "{turns:?}");
    // The other way has a bucket of its own.
    let other = pace.turn(Way::FromPeer, 100).unwrap();
    assert!(other.at <= Instant::now());
    pace.set(NonZeroU64::new(1_000_000));
    let turn = pace.turn(Way::ToPeer, 100).unwrap();
    assert!(turn.at <= Instant::now(), "a faster pace holds at once");
    pace.set(None);
    assert_eq!(pace.turn(Way::ToPeer, 100), None);
}

/// Sessions that end before their turn leave the pace as it was.
#[test]
fn who_ends_leaves_its_turn() {
    let pace = Pace::default();
    pace.set(NonZeroU64::new(1000));
    let wait = || pace.turn(Way::FromPeer, 1).unwrap().at.saturating_duration_since(Instant::now());
    let mut sides: Vec<_> = (0..100).map(|_| Side::new(&pace, Way::FromPeer)).collect();
    let waiting = sides.iter_mut().filter_map(|side| side.room(usize::MAX).is_none().then_some(()));
    assert_eq!(waiting.count(), 99);
    assert!(wait() > Duration::from_secs(350), "a hundred turns of four seconds");
    drop(sides);
    assert!(wait() < Duration::from_secs(1));
}

/// Two local sockets with a session between them; the second one's machine has this pace.
fn paced(pace: &Arc<Pace>) -> (UnixStream, UnixStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (far, _) = listener.accept().unwrap();
    let ((our_session, their_session), pace) = (sessions(), Arc::clone(pace));
    let ((ours, our_end), (theirs, their_end)) =
        (UnixStream::pair().unwrap(), UnixStream::pair().unwrap());
    // Both end with their sockets.
    thread::spawn(move || tunnel::run(&near, our_session, Records::default(), &our_end));
    thread::spawn(move || {
        tunnel::run_at((&far, their_session, Records::default()), &their_end, &pace)
    });
    (ours, theirs)
}

/// Has this many bytes go over, and says how long that took.
fn carry(from: &UnixStream, to: &mut UnixStream, bytes: usize) -> Duration {
    let (start, mut from) = (Instant::now(), from.try_clone().unwrap());
    let sending = thread::spawn(move || from.write_all(&vec![7; bytes]).unwrap());
    to.read_exact(&mut vec![0; bytes]).unwrap();
    sending.join().unwrap();
    start.elapsed()
}

/// How long so many bytes take at least, of as many sessions at once.
fn least(bytes: usize, bytes_per_s: u64, sessions: u32) -> Duration {
    let mut bucket = bucket(bytes_per_s);
    let (turn, _) = bucket.take(Duration::ZERO, usize::MAX);
    let all = bucket.time(bytes).saturating_sub(BURST);
    all.saturating_sub(bucket.time(turn) * sessions)
}

#[test]
fn a_session_keeps_its_pace() {
    const RATE: u64 = 1 << 20;
    let pace = Arc::<Pace>::default();
    let (mut ours, mut theirs) = paced(&pace);
    carry(&ours, &mut theirs, 1 << 20);
    // It holds for a session that is open.
    pace.set(NonZeroU64::new(RATE));
    let bytes = 1 << 19;
    let times = [carry(&ours, &mut theirs, bytes), carry(&theirs, &mut ours, bytes)];
    println!("{bytes} bytes at {RATE} a second: {times:?}");
    for time in times {
        assert!(time >= least(bytes, RATE, 1), "{time:?}");
    }
    pace.set(None);
    carry(&ours, &mut theirs, 8 << 20);
}

#[test]
fn sessions_share_a_pace() {
    const RATE: u64 = 1 << 20;
    let pace = Arc::<Pace>::default();
    pace.set(NonZeroU64::new(RATE));
    let (start, bytes) = (Instant::now(), 1 << 18);
    let all: Vec<_> = (0..3)
        .map(|_| {
            let (ours, mut theirs) = paced(&pace);
            thread::spawn(move || carry(&ours, &mut theirs, bytes))
        })
        .collect();
    for session in all {
        session.join().unwrap();
    }
    let time = start.elapsed();
    println!("three times {bytes} bytes at {RATE} a second: {time:?}");
    assert!(time >= least(3 * bytes, RATE, 3), "{time:?}");
}

/// What is slow is one direction of those that share a pace, and nothing else.
#[test]
fn others_are_not_slowed() {
    let pace = Arc::<Pace>::default();
    // Ten minutes for what is to go.
    pace.set(NonZeroU64::new(1024));
    let (slow, theirs) = paced(&pace);
    let (mut sender, is_over) = (slow.try_clone().unwrap(), Arc::<AtomicBool>::default());
    let over = Arc::clone(&is_over);
    let mut reader = theirs.try_clone().unwrap();
    let sending = thread::spawn(move || {
        // It ends when the socket does.
        let _ = sender.write_all(&vec![7; 600 << 10]);
        let _ = reader.read_exact(&mut vec![0; 600 << 10]);
        over.store(true, Relaxed);
    });
    let mut back = slow.try_clone().unwrap();
    carry(&theirs, &mut back, 1000);
    let (ours, mut others) = paced(&Arc::default());
    carry(&ours, &mut others, 8 << 20);
    assert!(!is_over.load(Relaxed), "what is slow goes on");
    for socket in [slow, theirs] {
        socket.shutdown(std::net::Shutdown::Both).unwrap();
    }
    sending.join().unwrap();
}
