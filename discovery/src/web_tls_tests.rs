//! Web servers with certificates of these tests' own.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::sync::Arc;
use std::thread;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd as date,
};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use ureq::tls::Certificate;

use super::*;

const PATIENCE: Duration = Duration::from_secs(60);

/// Who signs certificates.
struct Authority(Issuer<'static, KeyPair>, Vec<u8>);

impl Authority {
    fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap().der().to_vec();
        Self(Issuer::new(params, key), certificate)
    }

    /// What trusts it, and nobody else.
    fn trusted(&self) -> RootCerts {
        RootCerts::new_with_certs(&[Certificate::from_der(&self.1).to_owned()])
    }
}

/// A certificate for a name, from one year to another.
fn params(name: &str, years: (i32, i32)) -> CertificateParams {
    let mut params = CertificateParams::new(vec![name.into()]).unwrap();
    (params.not_before, params.not_after) = (date(years.0, 1, 1), date(years.1, 1, 1));
    params
}

/// Serves this over TLS, and says at which port.
fn serve(authority: &Authority, params: CertificateParams, answer: String) -> u16 {
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, &authority.0).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        )
        .unwrap();
    let (listener, config) = (TcpListener::bind("127.0.0.1:0").unwrap(), Arc::new(config));
    let port = listener.local_addr().unwrap().port();
    // As long as the tests run.
    thread::spawn(move || {
        for stream in listener.incoming() {
            let session = ServerConnection::new(Arc::clone(&config)).unwrap();
            let mut stream = StreamOwned::new(session, stream.unwrap());
            let (mut request, mut byte) = (Vec::new(), [0]);
            // One that does not believe the certificate asks for nothing.
            while !request.ends_with(b"\r\n\r\n") && stream.read_exact(&mut byte).is_ok() {
                request.extend(byte);
            }
            if request.ends_with(b"\r\n\r\n") {
                let _ = stream.write_all(answer.as_bytes());
                stream.conn.send_close_notify();
                let _ = stream.flush();
            }
        }
    });
    port
}

fn body(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

fn to(url: &str) -> String {
    format!("HTTP/1.1 302 Found\r\nLocation: {url}\r\nContent-Length: 0\r\n\r\n")
}

/// The same without TLS.
fn serve_plainly(answer: String) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let (mut request, mut byte) = (Vec::new(), [0]);
            while !request.ends_with(b"\r\n\r\n") && stream.read_exact(&mut byte).is_ok() {
                request.extend(byte);
            }
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    port
}

const NOW: (i32, i32) = (2020, 4000);

#[test]
fn who_is_who_it_says() {
    let (authority, other) = (Authority::new("one"), Authority::new("other"));
    let port = serve(&authority, params("localhost", NOW), body("here"));
    let url = format!("HTTPS://localhost:{port}/nodes");
    assert_eq!(fetch_from(&url, PATIENCE, authority.trusted()).unwrap(), b"here");
    let refused = |url: &str, roots| match fetch_from(url, PATIENCE, roots) {
        Err(DiscoveryError::Certificate(why)) => why,
        other => panic!("{url}: {other:?}"),
    };
    // The world's authorities do not know this one, nor does another one.
    for roots in [RootCerts::WebPki, other.trusted()] {
        let why = refused(&url, roots);
        assert!(why.contains("no authority"), "{why}");
    }
    let name = format!("https://127.0.0.1:{port}/nodes");
    assert!(refused(&name, authority.trusted()).contains("another name"));
    for (years, expect) in [((2000, 2001), "expired"), ((3999, 4000), "not valid yet")] {
        let port = serve(&authority, params("localhost", years), body("here"));
        let why = refused(&format!("https://localhost:{port}/nodes"), authority.trusted());
        assert!(why.contains(expect), "{why}");
    }
}

/// The limits are those of plain HTTP.
#[test]
fn limits_hold_over_tls() {
    let authority = Authority::new("one");
    let long = "x".repeat(usize::try_from(FILE_BYTES_MAX).unwrap() + 1);
    let port = serve(&authority, params("localhost", NOW), body(&long));
    let fetch = |port: u16, time| {
        fetch_from(&format!("https://localhost:{port}/nodes"), time, authority.trusted())
    };
    assert_eq!(fetch(port, PATIENCE), Err(DiscoveryError::ListTooLong));
    let half = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf".to_owned();
    let port = serve(&authority, params("localhost", NOW), half);
    assert!(matches!(fetch(port, PATIENCE), Err(DiscoveryError::Http(_))));
    // One that does not speak TLS, and one that says nothing.
    let plain = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = plain.local_addr().unwrap().port();
    thread::spawn(move || {
        let (mut stream, _) = plain.accept().unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
        // Until the other end hangs up.
        let _ = stream.read_to_end(&mut Vec::new());
    });
    assert!(matches!(fetch(port, PATIENCE), Err(DiscoveryError::Http(_))));
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    assert_eq!(fetch(port, Duration::from_millis(300)), Err(DiscoveryError::TimedOut));
}

#[test]
fn nobody_is_sent_to_another_scheme() {
    let authority = Authority::new("one");
    let there = serve(&authority, params("localhost", NOW), body("here"));
    let here = serve_plainly(body("here"));
    let (there, here) =
        (format!("https://localhost:{there}/nodes"), format!("http://localhost:{here}/nodes"));
    let sent = |over_tls: bool, url: &str| {
        let from = match over_tls {
            true => {
                let port = serve(&authority, params("localhost", NOW), to(url));
                format!("https://localhost:{port}/nodes")
            }
            false => format!("http://localhost:{}/nodes", serve_plainly(to(url))),
        };
        fetch_from(&from, PATIENCE, authority.trusted())
    };
    assert_eq!(sent(true, &there).unwrap(), b"here");
    assert_eq!(sent(false, &here).unwrap(), b"here");
    for (over_tls, url) in [(true, &here), (false, &there)] {
        assert_eq!(sent(over_tls, url), Err(DiscoveryError::Elsewhere(url.clone())));
    }
}
