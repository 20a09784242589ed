//! What a relay can make this machine do.

use std::io::{Read as _, Write as _};

use super::super::testing::{credentials, pair};
use super::*;
use cell_peer::{PREFACE, TOKEN_BYTES};

const RELAY: u32 = 9;

fn source() -> Source {
    Source::of([127, 0, 0, 1].into())
}

/// One way, and who would be the nucleus.
fn ways() -> (Ways, Link, Link) {
    let (ours, nucleus) = Link::pair().unwrap();
    (Ways::new(&[credentials(RELAY).0]), ours, nucleus)
}

fn said(nucleus: &Link) -> FromGateway {
    nucleus.receive(&mut Vec::new()).unwrap().unwrap().0
}

/// The id of the connection that is asked for.
#[track_caller]
fn dial(nucleus: &Link) -> u64 {
    match said(nucleus) {
        FromGateway::Dial { id, way: 0 } => id,
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn why_not(nucleus: &Link) -> Option<String> {
    match said(nucleus) {
        FromGateway::Waits { way: 0, why_not } => why_not,
        other => panic!("{other:?}"),
    }
}

/// The relay's end of a connection on which it was asked for something.
struct AtRelay {
    stream: TcpStream,
    session: Session,
}

/// The next record, waiting for it.
fn next_record(stream: &mut TcpStream) -> Vec<u8> {
    let mut length = [0; 2];
    stream.read_exact(&mut length).unwrap();
    let mut record = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut record).unwrap();
    record
}

/// Has what was sent to this machine read; who arrived, if somebody did.
fn deliver(ways: &mut Ways, id: u64, link: &Link) -> Option<Arrival> {
    let stream = ways.streams().find(|(found, _)| *found == id).unwrap().1;
    let mut fds = [rustix::event::PollFd::new(stream, rustix::event::PollFlags::IN)];
    rustix::event::poll(&mut fds, None).unwrap();
    ways.read(id, link, &mut Meter::default()).unwrap()
}

impl AtRelay {
    /// Shakes hands with this machine, with this key, and hears what it wants.
    fn new(ways: &mut Ways, id: u64, link: &Link) -> (Self, Request) {
        let (mut stream, ours) = pair();
        ways.dialled(id, Ok((ours, source())), &credentials(1).1, link).unwrap();
        let mut preface = [0; PREFACE.len()];
        stream.read_exact(&mut preface).unwrap();
        let respond = Handshake::respond(&credentials(RELAY).1, tunnel::now_s()).unwrap();
        let first = next_record(&mut stream);
        let Step::Reply(respond, second) = respond.step(&first).unwrap() else {
            panic!("no second message");
        };
        // In two parts, and nothing goes wrong.
        stream.write_all(&second[..50]).unwrap();
        assert!(deliver(ways, id, link).is_none());
        stream.write_all(&second[50..]).unwrap();
        assert!(deliver(ways, id, link).is_none());
        let third = next_record(&mut stream);
        let Step::Done(mut session, _) = respond.step(&third).unwrap() else {
            panic!("no session");
        };
        let mut content = Vec::new();
        session.open(&next_record(&mut stream), &mut content).unwrap();
        (Self { stream, session }, Request::decode(&content).unwrap())
    }

    /// Says these, each in a record, all at once.
    fn say(&mut self, contents: &[&[u8]]) {
        let mut bytes = Vec::new();
        for content in contents {
            self.session.seal(content, &mut bytes).unwrap();
        }
        self.stream.write_all(&bytes).unwrap();
    }
}

/// This machine waits at the relay; what it said to the nucleus on the way is checked.
fn waiting() -> (Ways, Link, Link, u64, AtRelay) {
    let (mut ways, link, nucleus) = ways();
    ways.tick(&link, Instant::now()).unwrap();
    let id = dial(&nucleus);
    let (mut relay, request) = AtRelay::new(&mut ways, id, &link);
    assert_eq!(request, Request::Wait);
    relay.say(&[&Answer::Yes.encode()]);
    assert!(deliver(&mut ways, id, &link).is_none());
    assert_eq!(why_not(&nucleus), None);
    (ways, link, nucleus, id, relay)
}

#[test]
fn who_arrives_may_have_begun_to_speak() {
    let (mut ways, link, nucleus, id, mut relay) = waiting();
    // Coalesced, and each is one.
    relay.say(&[&[1; TOKEN_BYTES], &[2; TOKEN_BYTES]]);
    assert!(deliver(&mut ways, id, &link).is_none());
    for token in [[1; TOKEN_BYTES], [2; TOKEN_BYTES]] {
        let id = dial(&nucleus);
        let (mut meets, request) = AtRelay::new(&mut ways, id, &link);
        assert_eq!(request, Request::Meet(token));
        let mut answer = Vec::new();
        meets.session.seal(&Answer::Yes.encode(), &mut answer).unwrap();
        answer.extend(PREFACE);
        meets.stream.write_all(&answer).unwrap();
        let Arrival { mut records, .. } = deliver(&mut ways, id, &link).unwrap();
        assert_eq!(records.take(PREFACE.len()), Some(&PREFACE[..]));
        assert!(records.is_empty());
    }
}

/// However many a relay announces, few are fetched at once, and none from anywhere else.
#[test]
fn few_are_fetched_at_once() {
    let (mut ways, link, nucleus, id, mut relay) = waiting();
    relay.say(&[&[1; TOKEN_BYTES][..]; 100]);
    // Of one look there are more tokens than that.
    while ways.arriving(0) < ARRIVALS_PER_RELAY_MAX {
        deliver(&mut ways, id, &link);
    }
    while ways.streams().next().unwrap().1.peek(&mut [0]).is_ok() {
        deliver(&mut ways, id, &link);
    }
    let ids: Vec<_> = ways.lines.keys().copied().filter(|line| *line != id).collect();
    assert_eq!(ids.len(), ARRIVALS_PER_RELAY_MAX);
    for id in &ids {
        assert_eq!(dial(&nucleus), *id);
    }
    // One that cannot be fetched makes room for one more.
    ways.dialled(ids[0], Err("refused".into()), &credentials(1).1, &link).unwrap();
    relay.say(&[&[1; TOKEN_BYTES]]);
    deliver(&mut ways, id, &link);
    dial(&nucleus);
    // Nor do they keep their places for ever.
    ways.tick(&link, Instant::now() + DIAL_TIME_MAX * 2).unwrap();
    assert_eq!(ways.arriving(0), 0);
    // And from one address only so often.
    let mut meter = Meter::default();
    // Later than now, so that nothing is made good meanwhile.
    let later = Instant::now() + DIAL_TIME_MAX;
    while meter.admits(source(), later) {}
    relay.say(&[&[1; TOKEN_BYTES]]);
    while ways.streams().next().unwrap().1.peek(&mut [0]).is_err() {}
    ways.read(id, &link, &mut meter).unwrap();
    assert_eq!(ways.arriving(0), 0);
}

/// What is no token, or too long, or said where nothing is to be said, ends the line; it is made again, later
/// and later.
#[test]
fn a_relay_that_says_anything_else_is_left() {
    for wrong in [&[][..], &[1], &[1; TOKEN_BYTES - 1], &[1; TOKEN_BYTES + 1]] {
        let (mut ways, link, nucleus, id, mut relay) = waiting();
        match wrong {
            [] => {
                let mut end = Vec::new();
                relay.session.end(&mut end).unwrap();
                relay.stream.write_all(&end).unwrap();
            }
            wrong => relay.say(&[wrong]),
        }
        deliver(&mut ways, id, &link);
        assert!(why_not(&nucleus).is_some(), "{wrong:?}");
        assert_eq!(ways.streams().count(), 0);
    }
    let (mut ways, link, nucleus, id, mut relay) = waiting();
    let too_long = u16::try_from(RECORD_BYTES_MAX + 1).unwrap();
    relay.stream.write_all(&too_long.to_be_bytes()).unwrap();
    deliver(&mut ways, id, &link);
    let expect = PeerError::RecordTooLong(RECORD_BYTES_MAX + 1).to_string();
    assert_eq!(why_not(&nucleus), Some(expect));
}

#[test]
fn a_relay_that_is_lost_is_tried_again() {
    let (mut ways, link, nucleus) = ways();
    let mut now = Instant::now();
    let mut longest = Duration::ZERO;
    for attempt in 0..12 {
        ways.tick(&link, now).unwrap();
        let id = dial(&nucleus);
        ways.dialled(id, Err("no route".into()), &credentials(1).1, &link).unwrap();
        assert_eq!(why_not(&nucleus).as_deref(), Some("no route"));
        let retry_at = ways.ways[0].retry_at.unwrap();
        let wait = retry_at.saturating_duration_since(Instant::now());
        assert!(wait <= RELAY_DELAY_MAX, "attempt {attempt}: {wait:?}");
        longest = longest.max(wait);
        // Not before that.
        ways.tick(&link, retry_at - Duration::from_millis(1)).unwrap();
        assert!(ways.lines.is_empty());
        now = retry_at;
    }
    assert!(longest > RELAY_DELAY_MAX / 3, "{longest:?}");
    // A relay that does not answer is not waited for either; one where it waited for long is tried at once.
    ways.tick(&link, now).unwrap();
    let id = dial(&nucleus);
    let (_silent, ours) = pair();
    ways.dialled(id, Ok((ours, source())), &credentials(1).1, &link).unwrap();
    ways.tick(&link, Instant::now() + HANDSHAKE_TIME_MAX).unwrap();
    assert_eq!(why_not(&nucleus).as_deref(), Some("it did not answer in time"));
    let long_ago = Instant::now() - RELAY_DELAY_MAX;
    ways.fell(0, Purpose::Wait, long_ago, "cut", (&link, Instant::now())).unwrap();
    assert!(ways.ways[0].retry_at.unwrap() <= Instant::now() + DELAY_FIRST);
}

/// Whoever is where the relay should be is not believed.
#[test]
fn another_relay_is_none() {
    let (mut ways, link, nucleus) = ways();
    ways.ways[0].relay = credentials(8).0;
    ways.tick(&link, Instant::now()).unwrap();
    let id = dial(&nucleus);
    let (mut stream, ours) = pair();
    ways.dialled(id, Ok((ours, source())), &credentials(1).1, &link).unwrap();
    stream.read_exact(&mut [0; PREFACE.len()]).unwrap();
    let respond = Handshake::respond(&credentials(RELAY).1, tunnel::now_s()).unwrap();
    let first = next_record(&mut stream);
    let Step::Reply(_, second) = respond.step(&first).unwrap() else { panic!("no message") };
    stream.write_all(&second).unwrap();
    deliver(&mut ways, id, &link);
    let (found, wanted) = (credentials(RELAY).0, credentials(8).0);
    let expect = PeerError::WrongPeer { found, wanted }.to_string();
    assert_eq!(why_not(&nucleus), Some(expect));
}
