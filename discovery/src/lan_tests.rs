use std::io::Write as _;
use std::net::{Ipv4Addr, UdpSocket};

use super::*;

/// Long enough for a busy machine; found is what counts, and ends the search.
const PATIENCE: Duration = Duration::from_secs(20);

fn account(number: usize) -> AccountId {
    let mut bytes = [7; 32];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    AccountId::from_bytes(bytes)
}

/// Whether what is sent to a group comes back, as it must for two programs of one machine.
fn try_multicast() -> std::io::Result<()> {
    let group = Ipv4Addr::new(224, 0, 0, 251);
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.join_multicast_v4(&group, &Ipv4Addr::UNSPECIFIED)?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    socket.send_to(b"cell", (group, socket.local_addr()?.port()))?;
    socket.recv_from(&mut [0; 4]).map(|_| ())
}

#[test]
fn neighbours_find_each_other_until_they_go() {
    if let Err(error) = try_multicast() {
        // Not by `eprintln`, which the harness swallows when a test passes.
        let name = "lan::neighbours_find_each_other_until_they_go";
        writeln!(std::io::stderr(), "skipped {name}: no multicast: {error}").unwrap();
        return;
    }
    // The process' number keeps runs of this test at the same time apart.
    let key = account(std::process::id() as usize);
    let announcement = announce(key, 7316).unwrap();
    let found = find_key(key, PATIENCE).unwrap().expect("nobody answers");
    assert_eq!(found.key, key);
    assert!(found.addresses.iter().all(|address| address.port() == 7316), "{found:?}");
    let other = account(usize::MAX);
    assert_eq!(find_key(other, Duration::from_millis(500)), Ok(None));
    drop(announcement);
    assert_eq!(find_key(key, Duration::from_secs(2)), Ok(None));
    assert!(find(Duration::ZERO).unwrap().is_empty());
}

fn service(said: &[(&str, &str)], addresses: &str, port: u16) -> ResolvedService {
    ServiceInfo::new(SERVICE, "n", "h.local.", addresses, port, said).unwrap().as_resolved_service()
}

#[test]
fn what_a_neighbour_says_is_a_key_of_this_version() {
    let right = account(1).to_string();
    let check = |said: &[(&str, &str)], expect: Option<AccountId>| {
        assert_eq!(key(&service(said, "192.0.2.1", 1)), expect, "{said:?}");
    };
    check(&[("key", &right), ("v", "1")], Some(account(1)));
    check(&[("key", &right), ("v", "2")], None);
    check(&[("key", &right)], None);
    check(&[("key", "12"), ("v", "1")], None);
    check(&[("v", "1")], None);
}

#[test]
fn addresses_are_those_that_one_can_connect_to() {
    let check = |ips: &str, port: u16, expect: &[&str]| {
        let mut found = Found::new();
        take(&mut found, account(1), addresses(&service(&[], ips, port)));
        let found = found.get(&account(1)).map(|found| neighbour(account(1), found).addresses);
        let found = found.unwrap_or_default();
        assert_eq!(found.iter().map(ToString::to_string).collect::<Vec<_>>(), expect);
    };
    check("127.0.0.1,192.0.2.1,2001:db8::1", 5, &["192.0.2.1:5", "[2001:db8::1]:5", "127.0.0.1:5"]);
    check("0.0.0.0,224.0.0.251,255.255.255.255,ff02::fb,::", 5, &[]);
    check("192.0.2.1", 0, &[]);
}

#[test]
fn a_crowd_takes_no_more_room() {
    let mut found = Found::new();
    let address = |port: usize| SocketAddr::from(([192, 0, 2, 1], u16::try_from(port).unwrap()));
    for number in 0..=LAN_NODES_MAX {
        take(&mut found, account(number), [address(1)].into_iter());
    }
    assert_eq!(found.len(), LAN_NODES_MAX);
    // Who is known may have more addresses, but not any number.
    take(&mut found, account(0), (1..=ADDRESSES_MAX + 1).map(address));
    assert_eq!(found[&account(0)].len(), ADDRESSES_MAX);
}
