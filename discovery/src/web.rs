//! What a web server says to one request: a body, within limits.
//!
//! What it says is not believed: records are signed, so whoever is between the server and here can do no more than who
//! keeps the file. With HTTPS they do not see who asks for what either, and can leave nothing out.

use std::time::Duration;

use rustls::CertificateError;
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, ResponseExt as _};

use crate::error::{DiscoveryError, printable};
use crate::rendezvous::FILE_BYTES_MAX;

/// How long it may take, redirects and all.
pub(crate) const FETCH_TIME_MAX: Duration = Duration::from_secs(10);
/// How often a server may send elsewhere.
pub(crate) const REDIRECTS_MAX: u32 = 3;
/// Longest header of an answer, in bytes.
pub(crate) const HEADER_BYTES_MAX: usize = 16 << 10;

/// What is at a URL. Who has a server's name is told by Mozilla's list of authorities.
pub(crate) fn fetch(url: &str, time_limit: Duration) -> Result<Vec<u8>, DiscoveryError> {
    fetch_from(url, time_limit, RootCerts::WebPki)
}

fn fetch_from(
    url: &str,
    time_limit: Duration,
    authorities: RootCerts,
) -> Result<Vec<u8>, DiscoveryError> {
    let is_https = url.get(..6).is_some_and(|start| start.eq_ignore_ascii_case("https:"));
    let config = Agent::config_builder()
        .timeout_global(Some(time_limit))
        .max_redirects(REDIRECTS_MAX)
        .max_response_header_size(HEADER_BYTES_MAX)
        // One who asked for it is not sent where everybody can listen.
        .https_only(is_https)
        .tls_config(TlsConfig::builder().root_certs(authorities).build())
        // What the environment says is meant for other programs.
        .proxy(None)
        .user_agent(concat!("cell/", env!("CARGO_PKG_VERSION")));
    let agent = config.build().new_agent();
    let mut answer = agent.get(url).call().map_err(failed)?;
    if !is_https && answer.get_uri().scheme_str() == Some("https") {
        return Err(DiscoveryError::Elsewhere(printable(answer.get_uri())));
    }
    answer.body_mut().with_config().limit(FILE_BYTES_MAX).read_to_vec().map_err(failed)
}

fn failed(error: ureq::Error) -> DiscoveryError {
    if let Some(rustls::Error::InvalidCertificate(why)) = of_tls(&error) {
        return DiscoveryError::Certificate(reason(why));
    }
    match error {
        ureq::Error::BodyExceedsLimit(_) => DiscoveryError::ListTooLong,
        ureq::Error::Timeout(_) => DiscoveryError::TimedOut,
        ureq::Error::RequireHttpsOnly(url) => DiscoveryError::Elsewhere(printable(url)),
        other => DiscoveryError::Http(printable(other)),
    }
}

/// What went wrong with TLS, if that did; a handshake's errors come as those of the line.
fn of_tls(error: &ureq::Error) -> Option<&rustls::Error> {
    match error {
        ureq::Error::Rustls(error) => Some(error),
        ureq::Error::Io(error) => error.get_ref()?.downcast_ref(),
        _ => None,
    }
}

fn reason(error: &CertificateError) -> String {
    match error {
        CertificateError::UnknownIssuer => "no authority that is known here signed it".into(),
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "it has expired; or compare this machine's clock".into()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "it is not valid yet; or compare this machine's clock".into()
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "it is for another name".into()
        }
        other => printable(other),
    }
}

#[cfg(test)]
#[path = "web_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "web_tls_tests.rs"]
mod tls_tests;
