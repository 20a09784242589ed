//! Reads one file over HTTP, with a limit on everything.
//!
//! There is no TLS: what is read is signed line by line, so who sits between can do no more than who
//! keeps the file. They do see who asks.

use std::time::Duration;

use ureq::Agent;

use crate::error::{DiscoveryError, printable};
use crate::rendezvous::FILE_BYTES_MAX;

/// How long it may take, redirects and all.
pub(crate) const FETCH_TIME_MAX: Duration = Duration::from_secs(10);
/// How often a server may send elsewhere.
pub(crate) const REDIRECTS_MAX: u32 = 3;
/// Longest header of an answer, in bytes.
pub(crate) const HEADER_BYTES_MAX: usize = 16 << 10;

/// What is at a URL.
pub(crate) fn fetch(url: &str, time_limit: Duration) -> Result<Vec<u8>, DiscoveryError> {
    let config = Agent::config_builder()
        .timeout_global(Some(time_limit))
        .max_redirects(REDIRECTS_MAX)
        .max_response_header_size(HEADER_BYTES_MAX)
        // What the environment says is meant for other programs.
        .proxy(None)
        .user_agent(concat!("cell/", env!("CARGO_PKG_VERSION")));
    let agent = config.build().new_agent();
    let mut answer = agent.get(url).call().map_err(failed)?;
    answer.body_mut().with_config().limit(FILE_BYTES_MAX).read_to_vec().map_err(failed)
}

fn failed(error: ureq::Error) -> DiscoveryError {
    match error {
        ureq::Error::BodyExceedsLimit(_) => DiscoveryError::ListTooLong,
        ureq::Error::Timeout(_) => DiscoveryError::TimedOut,
        ureq::Error::TlsRequired => DiscoveryError::Https,
        other => DiscoveryError::Http(printable(other)),
    }
}

#[cfg(test)]
#[path = "web_tests.rs"]
mod tests;
