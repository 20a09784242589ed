//! Machines that behave in their own ways, over sockets of this process.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::thread;

use cell_abi::frame::{HEADER_BYTES, HELLO_BYTES};
use cell_abi::{Header, Hello, Kind};

use super::*;

/// A cell that one machine runs, and the nucleus' end of the link.
fn elsewhere() -> (Arc<Elsewhere>, Link) {
    let (ours, theirs) = Link::pair().unwrap();
    let load =
        LoadElsewhere { cell: "far".into(), generation: 1, machines: vec!["den".to_owned()] };
    let name = CellName::parse("far").unwrap();
    (Arc::new(Elsewhere::new(name, &load, Arc::new(ours), Handle::current())), theirs)
}

/// Waits until a connection is asked for.
fn is_asked(link: &Link) {
    match link.receive::<FromWorker>(&mut Vec::new()).unwrap().unwrap().0 {
        FromWorker::Reach { machine: 0, generation: 1, .. } => {}
        other => panic!("{other:?}"),
    }
}

/// Speaks as a machine that takes every receptor, and answers each call with this status.
fn machine(mut stream: UnixStream, status: Status) {
    let mut hello = [0; HELLO_BYTES];
    let (mut slot, mut header) = (0, [0; HEADER_BYTES]);
    if stream.read_exact(&mut hello).is_err() || stream.write_all(&Hello::CURRENT.encode()).is_err()
    {
        return;
    }
    while stream.read_exact(&mut header).is_ok() {
        let asked = Header::decode(&header).unwrap();
        let bytes = asked.payload_bytes as usize + asked.padding();
        stream.read_exact(&mut vec![0; bytes]).unwrap();
        let answer = match asked.kind {
            Kind::Open => Header { slot, status: Status::Ok.code(), ..Header::new(Kind::Opened) },
            Kind::Call => Header { status: status.code(), ..Header::new(Kind::Reply) },
            _ => continue,
        };
        slot += 1;
        let answer = Header { request_id: asked.request_id, ..answer };
        if stream.write_all(&answer.encode()).is_err() {
            return;
        }
    }
}

async fn ask(of: &Arc<Elsewhere>, receptor: &str) -> RemoteReply {
    let deadline = Instant::now() + Duration::from_secs(60);
    let call = RemoteCall::new(receptor, "", b"hi".to_vec(), Fuel(1000), deadline);
    of.ask(&call).await
}

/// Hands a connection over to a machine of this status, each time that one is asked for, and counts.
fn serve(of: Arc<Elsewhere>, link: Link, times: usize, status: Status) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        for _ in 0..times {
            is_asked(&link);
            let (ours, theirs) = UnixStream::pair().unwrap();
            thread::spawn(move || machine(theirs, status));
            of.reached(1, 0, Ok(ours.into()));
        }
    })
}

/// A machine that says yes to whatever a cell asks of it filled this process.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_keeps_so_many_receptors() {
    let (far, link) = elsewhere();
    let serving = serve(Arc::clone(&far), link, 2, Status::Ok);
    for number in 0..=OPEN_MAX {
        assert_eq!(ask(&far, &format!("r{number}")).await.status, Status::Ok);
    }
    // The second connection was asked for, and has one.
    serving.join().unwrap();
    let Line::Up(lane) = &*lock(&far.machines[0].line) else { panic!("no connection") };
    assert_eq!(lock(&lane.slots).len(), 1);
}

/// What a machine says of itself has it rest; what it says of the call has not.
#[tokio::test(flavor = "multi_thread")]
async fn whose_fault_it_was() {
    for (status, rests) in [
        (Status::BadRequest, false),
        (Status::Trapped, false),
        (Status::OutOfAtp, false),
        (Status::Busy, true),
        (Status::UnknownCell, true),
        (Status::HostFault, true),
    ] {
        let (far, link) = elsewhere();
        let serving = serve(Arc::clone(&far), link, 1, status);
        let reply = ask(&far, "run").await;
        assert_eq!(reply.status, status, "{}", String::from_utf8_lossy(&reply.bytes));
        assert_eq!(lock(&far.records)[0].rest(Instant::now()).is_some(), rests, "{status:?}");
        serving.join().unwrap();
    }
}

/// One that accepts and hangs up was connected to again and again, without a pause.
#[tokio::test(flavor = "multi_thread")]
async fn who_hangs_up_at_once_rests() {
    let (far, link) = elsewhere();
    let of = Arc::clone(&far);
    let serving = thread::spawn(move || {
        is_asked(&link);
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        of.reached(1, 0, Ok(ours.into()));
        link
    });
    let reply = ask(&far, "run").await;
    assert_eq!((reply.status, reply.fuel), (Status::Unreachable, Fuel::ZERO));
    assert!(lock(&far.records)[0].rest(Instant::now()).is_some());
    // Nothing more is asked of the nucleus while it rests.
    let reply = ask(&far, "run").await;
    assert!(String::from_utf8_lossy(&reply.bytes).contains("tried again in"));
    drop(serving.join().unwrap());
}
