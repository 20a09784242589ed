//! The process that speaks with other machines: it accepts their connections, finds out who they are, and
//! carries what they say to the workers.
//!
//! It decides nothing: whether a peer is served is asked of the nucleus. It has no file, no ledger and not
//! the identity, only a key that the identity has signed for a week. Where this machine waits at others, the
//! nucleus opens the connections, and so it does where a cell here calls one elsewhere; where others wait here, their bytes pass through here, and are not for it.

mod hall;
mod limits;
mod meter;
mod reaches;
mod relay;
mod sessions;
#[cfg(test)]
mod testing;
mod ways;

use anyhow::{Context as _, bail};
use cell_abi::AccountId;
use cell_peer::Credentials;

use crate::link::Link;
use crate::link::gateway::{FromGateway, ToGateway};
use crate::walls;
use hall::Hall;
pub(crate) use limits::LIMITS;

/// Runs until the nucleus is gone.
pub(crate) fn run() -> anyhow::Result<()> {
    let link = Link::of_child().context("take the link")?;
    let Some((ToGateway::Start { credentials, relays }, fds)) = link.receive(&mut Vec::new())?
    else {
        bail!("the nucleus said nothing");
    };
    let credentials = Credentials::from_bytes(&credentials)?;
    let relays: Vec<_> = relays.into_iter().map(AccountId::from_bytes).collect();
    let listener = fds.into_iter().next().map(Into::into);
    let resources = walls::Resources {
        data_bytes_max: Some(limits::DATA_BYTES_MAX),
        ..walls::Resources::default()
    };
    let walls = walls::raise(&walls::Role::Gateway, &resources);
    link.send(&FromGateway::Ready { walls }, &[])?;
    Hall::new(link, listener, credentials, &relays).run()
}
