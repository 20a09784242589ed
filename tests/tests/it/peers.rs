//! Two machines that never met: who is served, what it costs, and what strangers can do.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use cell_abi::{AccountId, CellName, NanoAtp};
use cell_client::{CallOptions, Client, Config, Error};
use cell_peer::{Credentials, PeerError, Request, tunnel};
use cell_tests::process::Process;
use cell_tests::{Home, Nucleus, eventually, sample, wat};
use ed25519_dalek::SigningKey;
use serde_json::Value;

const TIMEOUT: Duration = Duration::from_secs(20);

/// A machine that listens for others, with cells for them.
pub(crate) struct Donor {
    pub(crate) nucleus: Nucleus,
    pub(crate) key: String,
    pub(crate) address: String,
}

pub(crate) fn donor(settings: &str) -> Donor {
    let home = Home::new();
    let text = format!("[peers]\nlisten = \"127.0.0.1:0\"\n{settings}");
    fs::write(home.path().join("nucleus.toml"), text).unwrap();
    let nucleus = Nucleus::up(&home);
    let (wasm, manifest) = sample("counter");
    nucleus.put("counter", &format!("{manifest}\npeers = true\n"), &wasm);
    nucleus.deploy("hello");
    nucleus.wait_for("counter", "live");
    let key = key(&home);
    let listed = home.cell(["peer", "list", "--json"]).expect(0).json();
    let address = listed["listens"].as_str().unwrap().to_owned();
    Donor { nucleus, key, address }
}

pub(crate) fn key(home: &Home) -> String {
    home.cell(["id", "--json"]).expect(0).json()["owner"].as_str().unwrap().to_owned()
}

pub(crate) fn identity(home: &Home) -> SigningKey {
    key(home);
    let bytes = fs::read(home.path().join("identity")).unwrap();
    SigningKey::from_bytes(&bytes.try_into().unwrap())
}

impl Donor {
    fn url(&self, target: &str) -> String {
        format!("cell://{}@{}/{target}", self.key, self.address)
    }

    pub(crate) fn gateway(&self) -> Process {
        eventually("there is a gateway", || {
            let children = self.nucleus.process().children();
            let named = |child: &Process| child.arguments().get(1).is_some_and(|w| w == "gateway");
            children.into_iter().find(named)
        })
    }

    /// Lets a home call, with so much to spend.
    pub(crate) fn admit(&self, home: &Home, atp: &str) -> String {
        let key = key(home);
        self.nucleus.cell(["peer", "add", &key]).expect(0);
        self.nucleus.cell(["ledger", "grant", atp, &key]).expect(0);
        key
    }

    fn dial(&self, home: &Home, address: &str) -> Result<Client, PeerError> {
        let credentials = Credentials::new(&identity(home), tunnel::now_s()).unwrap();
        let wanted = AccountId::parse(&self.key).unwrap();
        let request = Request::Cell(CellName::parse("counter").unwrap());
        let stream = tunnel::dial(address, &credentials, wanted, &request, TIMEOUT)?;
        Ok(Client::from_stream(stream, "counter", Config::default()).unwrap())
    }
}

/// A stranger is refused, a peer without money too, and one with money pays to the unit.
#[test]
fn peers_call_and_pay() {
    let (donor, home) = (donor(""), Home::new());
    let url = donor.url("counter.add");
    let call = |url: &str| home.cell(["call", url, r#"{"by":2}"#]);
    let told = |url: &str, code: i32, expect: &str| {
        let ran = call(url);
        assert!(ran.expect(code).stderr.contains(expect), "{expect}: {}", ran.stderr);
    };
    told(&url, 1, "cell peer add");
    let key = key(&home);
    donor.nucleus.cell(["peer", "add", &key, "--name", "friend"]).expect(0);
    told(&url, 122, "the account has 0 ATP");
    donor.nucleus.cell(["ledger", "grant", "5", &key]).expect(0);
    let first = home.cell(["call", &url, r#"{"by":2}"#, "--json"]).expect(0).json();
    assert_eq!(first["reply"]["value"], 2);
    let mut paid = first["fuel"].as_i64().unwrap();
    for _ in 0..3 {
        let reply = home.cell(["call", &url, r#"{"by":2}"#, "--json"]).expect(0).json();
        paid += reply["fuel"].as_i64().unwrap();
    }
    eventually("the peer's account pays", || {
        (donor.nucleus.balance(&key) == 5_000_000_000 - paid).then_some(())
    });
    assert_eq!(donor.nucleus.balance("cell:counter"), paid);
    assert_eq!(donor.nucleus.spent(), 0, "the owner pays for nobody");
    // The same by a name.
    home.cell(["peer", "add", &donor.key, "--name", "den", "--at", &donor.address]).expect(0);
    told("cell://den/counter.add", 0, "bill: ");
    told("cell://den/hello.greet", 1, "not for other machines");
    told("cell://den/nothing.greet", 1, "there is no cell");
    told("cell://nobody/counter.add", 2, "no peer is called");
    let other = donor.url("counter.add").replace(&donor.key, &key);
    told(&other, 1, "the peer is");
    told(&url.replace(&donor.address, "127.0.0.1:1"), 1, "connection");
    // Who is forgotten is refused, and what was paid stays paid.
    donor.nucleus.cell(["peer", "remove", "friend"]).expect(0);
    told(&url, 1, "cell peer add");
    donor.nucleus.cell(["ledger", "verify"]).expect(0);
}

/// With `trust = "anyone-who-pays"` a stranger needs no introduction, only money.
#[test]
fn anyone_who_pays() {
    let (donor, home) = (donor("trust = \"anyone-who-pays\"\n"), Home::new());
    let url = donor.url("counter.add");
    let poor = home.cell(["call", &url, r#"{"by":1}"#]);
    assert!(poor.expect(1).stderr.contains("nothing to spend"), "{}", poor.stderr);
    donor.nucleus.cell(["ledger", "grant", "1", &key(&home)]).expect(0);
    home.cell(["call", &url, r#"{"by":1}"#]).expect(0);
}

/// A session whose worker has hung up, and whose peer says nothing, does not last.
#[test]
fn a_silent_peer_keeps_nothing() {
    let (donor, home) = (donor(""), Home::new());
    donor.admit(&home, "5");
    // Not a byte of the protocol: the worker waits for its hello for a while, and hangs up.
    let credentials = Credentials::new(&identity(&home), tunnel::now_s()).unwrap();
    let wanted = AccountId::parse(&donor.key).unwrap();
    let request = Request::Cell(CellName::parse("counter").unwrap());
    let mut silent = tunnel::dial(&donor.address, &credentials, wanted, &request, TIMEOUT).unwrap();
    let mut answer = Vec::new();
    silent.read_to_end(&mut answer).unwrap();
    let gateway = donor.gateway();
    eventually("its session has ended", || (gateway.threads() == 1).then_some(()));
    drop(silent);
}

/// Each peer's calls run in a process of its own, behind the same walls, and one that crashes it harms
/// no other.
#[test]
fn peers_are_apart() {
    let donor = donor("");
    let (a, b) = (Home::new(), Home::new());
    for home in [&a, &b] {
        donor.admit(home, "5");
    }
    let (mut ours, mut theirs) =
        (donor.dial(&a, &donor.address).unwrap(), donor.dial(&b, &donor.address).unwrap());
    let call = |client: &mut Client| {
        let slot = client.open_raw("add")?;
        client.call_json(&slot, r#"{"by":1}"#, CallOptions::default()).map(|_| ())
    };
    call(&mut ours).unwrap();
    call(&mut theirs).unwrap();
    let workers = || {
        let children = donor.nucleus.process().children();
        children.into_iter().filter(|c| c.arguments().get(1).is_some_and(|w| w == "worker")).count()
    };
    assert_eq!(workers(), 3, "the owner's, and one for each");
    // A call that never ends takes nobody else's turn; hanging up ends it.
    donor.nucleus.deploy_wat("spin", &wat::cell("", wat::SPIN), "peers = true");
    let url = donor.url("spin.run");
    a.cell(["call", &url, "--raw", "x", "--fuel", "100000000"]).expect(122);
    call(&mut theirs).unwrap();
}

/// Strangers who say nothing, or nonsense, cost little and keep nobody out.
#[test]
fn strangers_keep_nobody_out() {
    let (donor, home) = (donor(""), Home::new());
    donor.admit(&home, "5");
    let address: SocketAddr = donor.address.parse().unwrap();
    let gateway = donor.gateway();
    home.cell(["call", &donor.url("counter.get")]).expect(0);
    let before = gateway.resident_kib();
    let stop = AtomicBool::new(false);
    let begun = AtomicUsize::new(0);
    let (mut worst, mut failed) = (Duration::ZERO, None);
    thread::scope(|scope| {
        for kind in 0..4 {
            let (stop, begun) = (&stop, &begun);
            scope.spawn(move || {
                let mut kept = std::collections::VecDeque::new();
                while !stop.load(Relaxed) {
                    let Ok(mut stream) = TcpStream::connect(address) else { continue };
                    let _ = match kind {
                        // Half open, and silent.
                        0 => Ok(()),
                        1 => stream.write_all(b"cell/noise/1\n"),
                        2 => stream.write_all(&[0xff; 2000]),
                        // A first message, and never a third.
                        _ => stream.write_all(&[&b"cell/noise/1\n\x00\x20"[..], &[9; 32]].concat()),
                    };
                    begun.fetch_add(1, Relaxed);
                    kept.push_back(stream);
                    if kept.len() > 100 {
                        kept.pop_front();
                    }
                }
            });
        }
        // A peer from another address than theirs, ten times, while ten thousand come.
        let mut calls = 0;
        while failed.is_none() && (begun.load(Relaxed) < 10_000 || calls < 10) {
            let started = Instant::now();
            failed = from_another_address(&donor, &home).err();
            worst = worst.max(started.elapsed());
            calls += 1;
        }
        stop.store(true, Relaxed);
    });
    assert_eq!(failed, None);
    let grown = gateway.peak_kib().saturating_sub(before);
    println!(
        "{} strangers; a peer connected and called in at worst {} ms; the gateway grew by {grown} KiB",
        begun.load(Relaxed),
        worst.as_millis()
    );
    assert!(grown < 8 << 10, "the gateway grew by {grown} KiB");
    assert!(gateway.is_alive());
    donor.nucleus.cell(["ledger", "verify"]).expect(0);
}

/// Through a relay that connects from 127.0.0.2, as another machine would.
fn from_another_address(donor: &Donor, home: &Home) -> Result<(), PeerError> {
    let relay = Relay::new(&donor.address, Some([127, 0, 0, 2]));
    let mut client = donor.dial(home, &relay.address)?;
    let slot = client.open_raw("get").map_err(|e| PeerError::Refused(e.to_string()))?;
    let reply = client.call_json(&slot, "null", CallOptions::default());
    reply.map(|_| ()).map_err(|e| PeerError::Refused(e.to_string()))
}

/// Carries connections to an address until it is told to cut them.
struct Relay {
    address: String,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Relay {
    fn new(to: &str, from: Option<[u8; 4]>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (open, to) = (Arc::<Mutex<Vec<TcpStream>>>::default(), to.parse().unwrap());
        let kept = Arc::clone(&open);
        // It ends with the test's process.
        thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                let Ok(far) = connect(to, from) else { continue };
                kept.lock().unwrap().extend([near.try_clone().unwrap(), far.try_clone().unwrap()]);
                for (mut from, mut to) in
                    [(near.try_clone().unwrap(), far.try_clone().unwrap()), (far, near)]
                {
                    thread::spawn(move || {
                        let mut bytes = [0; 4096];
                        while let Ok(read @ 1..) = from.read(&mut bytes) {
                            if to.write_all(&bytes[..read]).is_err() {
                                break;
                            }
                        }
                        let _ = to.shutdown(Shutdown::Write);
                    });
                }
            }
        });
        Self { address, open }
    }

    fn cut(&self) {
        for stream in self.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn connect(to: SocketAddr, from: Option<[u8; 4]>) -> std::io::Result<TcpStream> {
    use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None)?;
    if let Some(from) = from {
        bind(&socket, &SocketAddr::from((from, 0)))?;
    }
    connect(&socket, &to)?;
    Ok(socket.into())
}

/// A link that is cut a hundred times in the middle of five hundred calls: each call has an answer or an
/// error, and the donor's count, state and books agree on how many there were.
#[test]
fn a_cut_link_loses_nothing_silently() {
    let (donor, home) = (donor(""), Home::new());
    let account = donor.admit(&home, "100");
    let relay = Relay::new(&donor.address, None);
    let (mut answered, mut failed, mut cuts, mut fuel) = (0_u64, 0_u64, 0_u64, 0);
    let mut client: Option<(Client, cell_client::RawSlot)> = None;
    while answered + failed < 500 {
        if client.is_none() {
            let mut fresh = donor.dial(&home, &relay.address).unwrap();
            let slot = fresh.open_raw("add").unwrap();
            client = Some((fresh, slot));
        }
        let (connected, slot) = client.as_mut().unwrap();
        if (answered + failed) % 5 == 4 && cuts < 100 {
            // In the middle of a call: while its answer is on the way.
            let cutting = thread::scope(|scope| {
                let calling = scope
                    .spawn(|| connected.call_json(slot, r#"{"by":1}"#, CallOptions::default()));
                // From before it is sent until after it is answered.
                thread::sleep(Duration::from_micros(cuts * 10));
                relay.cut();
                calling.join().unwrap()
            });
            cuts += 1;
            match cutting {
                Ok(reply) => (answered, fuel) = (answered + 1, reply.fuel().0),
                Err(Error::Disconnected { .. } | Error::Io(_)) => failed += 1,
                Err(other) => panic!("{other:?}"),
            }
            client = None;
            continue;
        }
        let reply = connected.call_json(slot, r#"{"by":1}"#, CallOptions::default()).unwrap();
        (answered, fuel) = (answered + 1, reply.fuel().0);
    }
    assert_eq!(cuts, 100);
    let value = || -> u64 {
        let ran = home.cell(["call", &donor.url("counter.get"), "--json"]).expect(0).json();
        ran["reply"]["value"].as_u64().unwrap()
    };
    let mut ran = value();
    // What was under way when the last link was cut may end a moment later.
    eventually("no call is under way", || {
        let again = value();
        let same = again == ran;
        ran = again;
        same.then_some(())
    });
    println!(
        "500 calls, {cuts} cuts: {answered} answered, {failed} told that the link is gone, {ran} ran"
    );
    assert!((answered..=answered + failed).contains(&ran), "{ran}");
    let earned = || donor.nucleus.balance("cell:counter");
    let mut before = -1;
    eventually("all is paid", || {
        let now = earned();
        let settled = now == before && now > 0;
        before = now;
        thread::sleep(Duration::from_millis(200));
        settled.then_some(())
    });
    // Each call that ran was paid once: an addition costs the same each time, a cut one at most that.
    let gets = donor.nucleus.balance("cell:counter") - i64::try_from(ran * fuel).unwrap();
    assert!(gets >= 0 && gets < i64::try_from(fuel).unwrap() * 200, "{gets}, {fuel} a call");
    let atp = i64::try_from(NanoAtp::from_atp(100).unwrap().0).unwrap();
    assert_eq!(donor.nucleus.balance(&account) + earned(), atp);
    donor.nucleus.cell(["ledger", "verify"]).expect(0);
}

/// The gateway's end is no end: connections break, and the next one is served.
#[test]
fn a_gateway_that_dies_is_replaced() {
    let (donor, home) = (donor(""), Home::new());
    donor.admit(&home, "5");
    let mut client = donor.dial(&home, &donor.address).unwrap();
    let slot = client.open_raw("add").unwrap();
    client.call_json(&slot, r#"{"by":1}"#, CallOptions::default()).unwrap();
    donor.gateway().kill();
    let broken = client.call_json(&slot, r#"{"by":1}"#, CallOptions::default());
    assert!(broken.is_err());
    eventually("another gateway serves", || {
        let ran = home.cell(["call", &donor.url("counter.get"), "--json", "--timeout", "5"]);
        (ran.code == Some(0)).then_some(())
    });
    let found: Value = home.cell(["call", &donor.url("counter.get"), "--json"]).expect(0).json();
    assert_eq!(found["reply"]["value"], 1);
}

#[test]
fn peers_are_named_by_hand() {
    let home = Home::new();
    let key = key(&Home::new());
    home.cell(["peer", "add", "12"]).expect(2);
    home.cell(["peer", "add", &key, "--at", "nowhere"]).expect(2);
    home.cell(["peer", "add", &key, "--name", "../x"]).expect(2);
    home.cell(["peer", "add", &key, "--name", "den", "--at", "127.0.0.1:9"]).expect(0);
    let other = self::key(&Home::new());
    home.cell(["peer", "add", &other, "--name", "den"]).expect(1);
    let listed = home.cell(["peer", "list", "--json"]).expect(0).json();
    assert_eq!(listed["peers"][0]["name"], "den");
    home.cell(["peer", "remove", "nobody"]).expect(1);
    home.cell(["peer", "remove", &key]).expect(0);
    assert_eq!(
        home.cell(["peer", "list", "--json"]).expect(0).json()["peers"],
        serde_json::json!([])
    );
    fs::write(home.path().join("peers.toml"), "[[peer]]\nkey = 3\n").unwrap();
    let ran = home.cell(["peer", "list"]);
    assert!(ran.expect(1).stderr.contains("peers.toml"), "{}", ran.stderr);
}

/// Two network namespaces with a cable between them; they go when this does.
pub(crate) struct Namespaces {
    names: [String; 2],
}

impl Namespaces {
    /// `None`, and why, where this machine lets nobody make them.
    pub(crate) fn new() -> Option<Self> {
        let id = std::process::id();
        let this = Self { names: [format!("ct-{id}-a"), format!("ct-{id}-b")] };
        let [a, b] = &this.names;
        // The kernel's names of interfaces have at most 15 characters.
        let (left, right) = (format!("cta{id}"), format!("ctb{id}"));
        let script = format!(
            "ip netns add {a} && ip netns add {b} &&
             ip link add {left} netns {a} type veth peer name {right} netns {b} &&
             ip -n {a} addr add 10.77.0.1/24 dev {left} && ip -n {b} addr add 10.77.0.2/24 dev {right} &&
             ip -n {a} link set {left} up && ip -n {b} link set {right} up && ip -n {a} link set lo up"
        );
        let made = Command::new("sh").args(["-c", &script]).output();
        match made {
            Ok(made) if made.status.success() => Some(this),
            other => {
                let test = thread::current();
                println!("{} SKIPPED: {other:?}", test.name().unwrap_or_default());
                None
            }
        }
    }

    /// Runs `cell` in one of them.
    pub(crate) fn cell(
        &self,
        namespace: usize,
        home: &Home,
        arguments: &[&str],
    ) -> std::process::Output {
        let command = home.command(arguments);
        Command::new("ip")
            .args(["netns", "exec", &self.names[namespace]])
            .arg(command.get_program())
            .args(command.get_args())
            .stdin(std::process::Stdio::null())
            .output()
            .unwrap()
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = Command::new("ip").args(["netns", "del", name]).output();
        }
    }
}

/// Two machines that share nothing but a cable: one calls a cell on the other, the other's books say what
/// its replies said, and the receipt is checked where the caller is.
#[test]
fn two_machines_with_addresses_of_their_own() {
    let Some(two) = Namespaces::new() else { return };
    let (donor, consumer) = (Home::new(), Home::new());
    let settings = "[peers]\nlisten = \"10.77.0.1:7316\"\n";
    fs::write(donor.path().join("nucleus.toml"), settings).unwrap();
    let up = two.cell(0, &donor, &["up"]);
    assert!(up.status.success(), "{up:?}");
    let _down = Down(&donor);
    let (wasm, manifest) = sample("counter");
    let more = "isolation = \"call\"\nreceipts = true\npeers = true\n";
    donor.put("counter", &format!("{manifest}\n{more}"), &wasm);
    donor.wait_for("counter", "live");
    let account = key(&consumer);
    donor.cell(["peer", "add", &account]).expect(0);
    donor.cell(["ledger", "grant", "5", &account]).expect(0);
    let url = format!("cell://{}@10.77.0.1:7316/counter.add", key(&donor));
    let mut fuel = 0;
    for value in 1..=5 {
        let ran = two.cell(1, &consumer, &["call", &url, r#"{"by":1}"#, "--json"]);
        assert!(ran.status.success(), "{ran:?}");
        let reply: Value = serde_json::from_slice(&ran.stdout).unwrap();
        assert_eq!(reply["reply"]["value"], value);
        fuel += reply["fuel"].as_i64().unwrap();
    }
    // From this machine there is no way to that address.
    consumer.cell(["call", &url, r#"{"by":1}"#, "--timeout", "1"]).expect(1);
    let receipt = eventually("five calls have receipts", || {
        let listed = donor.cell(["ledger", "receipts", "-n", "0", "--json"]);
        let listed: Vec<Value> = serde_json::from_str(&listed.stdout).ok()?;
        listed.last().filter(|last| last["last_call"] == 5).cloned()
    });
    assert_eq!(
        (receipt["payer"].as_str(), receipt["charge_nano_atp"].as_i64()),
        (Some(account.as_str()), Some(fuel))
    );
    eventually("the peer has paid", || {
        (donor.balance(&account) == 5_000_000_000 - fuel).then_some(())
    });
    assert_eq!(donor.balance("cell:counter"), fuel);
    let place = tempfile::Builder::new().prefix("ct-n-").tempdir_in("/tmp").unwrap();
    let (file, module) = (place.path().join("receipt.json"), place.path().join("counter.wasm"));
    let (file, module) = (file.to_str().unwrap(), module.to_str().unwrap());
    fs::write(module, &wasm).unwrap();
    donor
        .cell(["ledger", "receipts", receipt["hash"].as_str().unwrap(), "--export", file])
        .expect(0);
    let found = consumer.cell(["verify", file, "--module", module, "--json"]).expect(0).json();
    assert_eq!(found["not_checkable"], serde_json::json!([]));
}

/// Ends the nucleus of a home.
pub(crate) struct Down<'a>(pub(crate) &'a Home);

impl Drop for Down<'_> {
    fn drop(&mut self) {
        self.0.cell(["down"]);
    }
}
