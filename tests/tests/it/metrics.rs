//! Metrics: well-formed, equal to `cell ps`, and nobody's way to harm the nucleus.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use cell_client::CallOptions;
use cell_tests::{GUARD, Home, Nucleus, eventually, wat};
use serde_json::Value;

const GET: &str = "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n";
/// Connections to the socket that are served at once, as `cell inspect --limits` says.
const CONNECTIONS_MAX: usize = 8;
const REQUEST_BYTES_MAX: usize = 4096;

fn connect(home: &Home) -> UnixStream {
    let stream = UnixStream::connect(home.path().join("metrics.sock")).unwrap();
    stream.set_read_timeout(Some(GUARD)).unwrap();
    stream
}

/// What comes until the server closes: status, head and body.
fn read_page(mut stream: impl Read) -> io::Result<(u16, String, String)> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    let text = String::from_utf8(bytes).map_err(io::Error::other)?;
    let (head, body) = text.split_once("\r\n\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok());
    let status = status.ok_or(io::ErrorKind::InvalidData)?;
    Ok((status, head.to_owned(), body.to_owned()))
}

fn ask(home: &Home, request: &[u8]) -> (u16, String, String) {
    let mut stream = connect(home);
    stream.write_all(request).unwrap();
    read_page(stream).unwrap()
}

fn scrape(home: &Home) -> Samples {
    let (status, head, body) = ask(home, GET.as_bytes());
    assert_eq!(status, 200, "{head}\n{body}");
    assert!(head.contains("Content-Type: text/plain; version=0.0.4"), "{head}");
    assert!(head.contains(&format!("Content-Length: {}", body.len())), "{head}");
    Samples::parse(&body)
}

/// Samples by name and labels, and the kind of each family.
struct Samples {
    values: BTreeMap<(String, BTreeMap<String, String>), f64>,
    kinds: BTreeMap<String, String>,
}

impl Samples {
    /// Reads the text format as strictly as it is written down.
    #[track_caller]
    fn parse(text: &str) -> Self {
        let mut this = Self { values: BTreeMap::new(), kinds: BTreeMap::new() };
        let (mut family, mut helped) = (String::new(), HashSet::new());
        assert!(text.ends_with('\n'));
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').unwrap();
                assert!(!help.is_empty() && helped.insert(name.to_owned()), "{line}");
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                assert!(matches!(kind, "counter" | "gauge" | "summary"), "{line}");
                assert!(helped.contains(name), "no help: {line}");
                assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
                let twice = this.kinds.insert(name.to_owned(), kind.to_owned());
                assert!(twice.is_none(), "{line}");
                family = name.to_owned();
            } else {
                this.sample(line, &family);
            }
        }
        this
    }

    #[track_caller]
    fn sample(&mut self, line: &str, family: &str) {
        let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line:?}"));
        let (name, labels) = match series.split_once('{') {
            Some((name, labels)) => (name, labels.strip_suffix('}').expect(line)),
            None => (series, ""),
        };
        assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{line}");
        let of_summary = self.kinds.get(family).is_some_and(|kind| kind == "summary");
        let suffix = name.strip_prefix(family).unwrap_or_else(|| panic!("{line}: not of {family}"));
        assert!(suffix.is_empty() || (of_summary && matches!(suffix, "_sum" | "_count")), "{line}");
        let value: f64 = value.parse().unwrap_or_else(|_| panic!("{line:?}"));
        let key = (name.to_owned(), label_pairs(labels));
        assert!(self.values.insert(key, value).is_none(), "twice: {line}");
    }

    #[track_caller]
    fn value(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let owned = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let value = self.values.get(&(name.to_owned(), owned));
        *value.unwrap_or_else(|| panic!("no {name}{labels:?}"))
    }
}

fn label_pairs(mut text: &str) -> BTreeMap<String, String> {
    let mut pairs = BTreeMap::new();
    while !text.is_empty() {
        let (name, rest) = text.split_once("=\"").unwrap_or_else(|| panic!("{text:?}"));
        assert!(name.bytes().all(|b| b.is_ascii_lowercase()), "{text:?}");
        let mut value = String::new();
        let mut chars = rest.char_indices();
        let end = loop {
            match chars.next().unwrap_or_else(|| panic!("{text:?}")) {
                (at, '"') => break at,
                (_, '\\') => value.push(match chars.next() {
                    Some((_, 'n')) => '\n',
                    Some((_, c @ ('\\' | '"'))) => c,
                    other => panic!("{other:?} in {text:?}"),
                }),
                (_, c) => value.push(c),
            }
        };
        assert!(pairs.insert(name.to_owned(), value).is_none(), "{text:?}");
        text = &rest[end + 1..];
        text = text.strip_prefix(',').unwrap_or(text);
    }
    pairs
}

/// Calls that succeed, trap and run out of fuel.
fn use_cells(nucleus: &Nucleus) {
    let mut client = nucleus.client("hello");
    let slot = client.open_raw("greet").unwrap();
    for _ in 0..50 {
        client.call_json(&slot, "{\"name\":\"Ada\"}", CallOptions::default()).unwrap();
    }
    let mut client = nucleus.client("spin");
    let slot = client.open_raw("run").unwrap();
    let little = CallOptions { fuel: cell_client::Fuel(100_000), timeout: GUARD };
    for _ in 0..3 {
        client.call_raw(&slot, b"", little).unwrap_err();
    }
    let mut client = nucleus.client("trap");
    let slot = client.open_raw("run").unwrap();
    client.call_raw(&slot, b"", CallOptions::default()).unwrap_err();
}

#[test]
fn equal_to_ps() {
    let nucleus = Nucleus::new();
    nucleus.deploy("hello");
    nucleus.deploy_wat("spin", &wat::cell("", wat::SPIN), "");
    nucleus.deploy_wat("trap", &wat::cell("", "unreachable"), "");
    fs::create_dir(nucleus.cell_directory("no \"cell\"\\\n")).unwrap();
    nucleus.wait_for("no \"cell\"\\\n", "failed");
    let before = scrape(&nucleus);
    assert_eq!(before.value("cell_calls_total", &[("cell", "hello")]), 0.0);
    use_cells(&nucleus);
    eventually("all calls are reported", || {
        let calls = |name: &str| nucleus.row(name).unwrap()["stats"]["calls"].clone();
        ([calls("hello"), calls("spin"), calls("trap")] == [50, 3, 1]).then_some(())
    });
    let after = scrape(&nucleus);
    for ((name, labels), value) in &before.values {
        let counts = before.kinds.get(name).is_some_and(|kind| kind == "counter");
        let now = after.values.get(&(name.clone(), labels.clone()));
        assert!(!counts || now.is_some_and(|now| now >= value), "{name} {labels:?}: {now:?}");
    }
    let shown = nucleus.cell(["ps", "--json"]).expect(0).json();
    for row in shown.as_array().unwrap() {
        let cell = row["cell"].as_str().unwrap();
        let labels = [("cell", cell)];
        for (metric, figure) in [
            ("cell_calls_total", "calls"),
            ("cell_fuel_total", "fuel"),
            ("cell_instances", "instances"),
            ("cell_waiting_calls", "waiting"),
            ("cell_memory_bytes", "memory_bytes"),
        ] {
            let expected = row["stats"][figure].as_f64();
            assert_eq!(Some(after.value(metric, &labels)), expected, "{metric} of {cell}");
        }
        let state = row["state"].as_str().unwrap();
        assert_eq!(after.value("cell_state", &[("cell", cell), ("state", state)]), 1.0);
    }
    let failures =
        |cell, cause| after.value("cell_failures_total", &[("cell", cell), ("cause", cause)]);
    assert_eq!((failures("spin", "out_of_fuel"), failures("trap", "trapped")), (3.0, 1.0));
    let hello = [("cell", "hello")];
    assert_eq!(after.value("cell_call_duration_seconds_count", &hello), 50.0);
    assert!(after.value("cell_call_duration_seconds_sum", &hello) > 0.0);
    assert_eq!(after.value("cell_worker_restarts_total", &[]), 0.0);
    let info = after.values.keys().find(|(name, _)| name == "cell_nucleus_info").unwrap();
    assert!(info.1["version"].starts_with("0."), "{info:?}");
    // Another worker: what was counted stays.
    let worker = nucleus.worker();
    worker.kill();
    let restarted =
        || (scrape(&nucleus).value("cell_worker_restarts_total", &[]) == 1.0).then_some(());
    eventually("the restart is counted", restarted);
    assert_eq!(scrape(&nucleus).value("cell_calls_total", &hello), 50.0);
    let mode = fs::metadata(nucleus.path().join("metrics.sock")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let home = nucleus.down();
    assert_eq!(home.sockets(), Vec::<std::path::PathBuf>::new());
}

#[test]
fn at_a_port_of_this_machine_only() {
    let home = Home::new();
    // A port that is free now; the kernel does not hand it out again soon.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    fs::write(home.path().join("nucleus.toml"), format!("[metrics]\nport = {port}\n")).unwrap();
    let nucleus = Nucleus::up(&home);
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(GUARD)).unwrap();
    stream.write_all(GET.as_bytes()).unwrap();
    let (status, _, body) = read_page(stream).unwrap();
    assert_eq!(status, 200);
    assert_eq!(Samples::parse(&body).value("cell_worker_restarts_total", &[]), 0.0);
    // Addresses in this table are in the machine's byte order.
    let address = format!("{:08X}:{port:04X}", u32::from_ne_bytes([127, 0, 0, 1]));
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let listens = |line: &&str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields[3] == "0A" && fields[1].ends_with(&format!(":{port:04X}"))
    };
    let listening: Vec<&str> = table.lines().filter(listens).collect();
    assert!(listening.len() == 1 && listening[0].contains(&address), "{listening:?}");
    // A port that is taken: the nucleus says so instead of coming up without.
    let second = Home::new();
    fs::copy(home.path().join("nucleus.toml"), second.path().join("nucleus.toml")).unwrap();
    let ran = second.cell(["up", "--foreground"]);
    assert!(ran.expect(1).stderr.contains("metrics.port"), "{}", ran.stderr);
    nucleus.down();
}

#[test]
fn requests_that_are_none() {
    let nucleus = Nucleus::new();
    let check = |request: &[u8], expected: u16| {
        let (status, head, body) = ask(&nucleus, request);
        let shown = String::from_utf8_lossy(&request[..request.len().min(80)]).into_owned();
        assert_eq!(status, expected, "{shown}: {head}\n{body}");
        body
    };
    assert_eq!(check(b"HEAD /metrics HTTP/1.1\r\n\r\n", 200), "");
    check(b"GET / HTTP/1.1\r\n\r\n", 404);
    check(b"POST /metrics HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", 405);
    check(b"GET /metrics HTTP/3\r\n\r\n", 505);
    check(b"\xff\x00\x1b[2J\r\n\r\n", 400);
    // The longest head that is heard, and one byte more.
    let padded = |bytes: usize| {
        let start = "GET /metrics HTTP/1.1\r\nX: ";
        format!("{start}{}\r\n\r\n", "x".repeat(bytes - start.len()))
    };
    check(padded(REQUEST_BYTES_MAX).as_bytes(), 200);
    check(padded(REQUEST_BYTES_MAX + 1).as_bytes(), 431);
    check(&vec![b'x'; REQUEST_BYTES_MAX * 4], 431);
    // More after a request than is thrown away: it is not taken.
    let mut stream = connect(&nucleus);
    stream.write_all(GET.as_bytes()).unwrap();
    assert!(stream.write_all(&vec![b'x'; 4 << 20]).is_err());
    // One that hangs up in the middle harms nobody.
    for length in [0, 1, 20] {
        connect(&nucleus).write_all(&GET.as_bytes()[..length]).unwrap();
    }
    scrape(&nucleus);
    nucleus.down();
}

/// Clients that say nothing take the places of others, for a while.
#[test]
fn silent_clients_are_told_and_closed() {
    let nucleus = Nucleus::new();
    let mut silent: Vec<_> = (0..CONNECTIONS_MAX).map(|_| connect(&nucleus)).collect();
    let refused = || {
        let page = read_page(connect(&nucleus)).ok()?;
        (page.0 == 503).then_some(())
    };
    eventually("one more is refused", refused);
    // One byte now and then is not a request either.
    let mut dripping = silent.pop().unwrap();
    dripping.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    let mut answer = Vec::new();
    eventually("a client that drips is told", || {
        let _ = dripping.write_all(b"G");
        let mut buffer = [0; 1024];
        match dripping.read(&mut buffer) {
            Ok(read) => answer.extend_from_slice(&buffer[..read]),
            Err(error) => assert!(
                matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock
                        | io::ErrorKind::TimedOut
                        | io::ErrorKind::ConnectionReset
                ),
                "{error}"
            ),
        }
        String::from_utf8_lossy(&answer).contains("408 Request Timeout").then_some(())
    });
    for stream in silent {
        let (status, _, _) = read_page(stream).unwrap();
        assert_eq!(status, 408);
    }
    eventually("others are served again", || {
        let mut stream = connect(&nucleus);
        stream.write_all(GET.as_bytes()).ok()?;
        (read_page(stream).ok()?.0 == 200).then_some(())
    });
    nucleus.down();
}

/// Clients that ask and do not read give their places back too.
#[test]
fn clients_that_do_not_read_are_closed() {
    let nucleus = Nucleus::new();
    // Many long names: more than the kernel keeps for a client.
    for number in 0..1000 {
        let name = format!("{}-{number}", "n".repeat(100));
        fs::create_dir(nucleus.cell_directory(&name)).unwrap();
    }
    eventually("all are listed", || {
        let (_, _, body) = ask(&nucleus, GET.as_bytes());
        (body.matches("state=\"failed\"").count() == 1000).then_some(())
    });
    let mut deaf = Vec::new();
    eventually("one more is refused", || {
        let mut stream = connect(&nucleus);
        // One that is refused may be closed already.
        let _ = stream.write_all(GET.as_bytes());
        let mut status = [0; 12];
        stream.read_exact(&mut status).ok()?;
        if status == *b"HTTP/1.1 503" {
            return Some(());
        }
        deaf.push(stream);
        None
    });
    assert!(deaf.len() >= CONNECTIONS_MAX, "{}", deaf.len());
    eventually("others are served again", || {
        let mut stream = connect(&nucleus);
        stream.write_all(GET.as_bytes()).ok()?;
        (read_page(stream).ok()?.0 == 200).then_some(())
    });
    // At least the one whose place was given to another got less than all.
    let was_cut = |mut stream: UnixStream| {
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes);
        let text = String::from_utf8_lossy(&bytes);
        let (head, body) = text.split_once("\r\n\r\n").expect("it was answered");
        !head.contains(&format!("Content-Length: {}\r\n", body.len()))
    };
    assert!(deaf.into_iter().any(was_cut), "nobody was cut off");
    assert_eq!(
        nucleus.cell(["top", "--json", "--iterations", "1"]).expect(0).json()["nucleus"]["pid"],
        nucleus.process().pid
    );
    nucleus.down();
}

/// What a guest says last stands in the nucleus' log as one record, in either format.
#[test]
fn the_log_is_records_only() {
    for format in ["text", "json"] {
        let home = Home::new();
        let nucleus = Nucleus::up_with(&home, |command| {
            command.arg("--log-format").arg(format);
        });
        let name = "x\n{\"level\":\"ERROR\"}\n2026-01-01T00:00:00Z ERROR forged\u{1b}[2J";
        fs::create_dir(nucleus.cell_directory(name)).unwrap();
        nucleus.wait_for(name, "failed");
        // A worker logs in the same way, if it says anything; a restart is told by the nucleus.
        nucleus.worker().kill();
        let told = || nucleus.log().contains("a worker is gone").then_some(());
        eventually("it is told", told);
        nucleus.down();
        let log = home.log();
        assert!(log.contains("not deployed"), "{log}");
        assert!(!log.chars().any(|c| c.is_control() && c != '\n'), "{log:?}");
        for line in log.lines() {
            if format == "json" {
                let record: Value =
                    serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
                assert!(record["level"].is_string() && record["timestamp"].is_string(), "{line}");
                assert!(record["level"] != "ERROR", "{line}");
            } else {
                assert!(line.contains(" INFO ") || line.contains(" WARN "), "{line}");
                assert!(!line.starts_with("2026-01-01"), "{line}");
            }
        }
    }
    // The environment says it too, also to a nucleus in the background.
    let home = Home::new();
    let mut command = home.command(["up"]);
    let ran = command.env("CELL_LOG_FORMAT", "json").output().unwrap();
    assert!(ran.status.success(), "{ran:?}");
    home.cell(["down"]).expect(0);
    let log = home.log();
    assert!(!log.is_empty() && log.lines().all(|line| line.starts_with('{')), "{log}");
}
