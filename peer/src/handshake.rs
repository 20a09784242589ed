//! Three messages after which both sides know each other: `Noise_XX_25519_ChaChaPoly_BLAKE2s`.
//!
//! The initiator sends [`PREFACE`], which both sides hash, so that no older version can be slipped in
//! between them; then each message is a record. Messages two and three carry the sender's proof that its
//! key is its identity's.

use cell_abi::AccountId;
use snow::{Builder, HandshakeState};

use crate::credentials::{self, Credentials, PROOF_BYTES};
use crate::error::PeerError;
use crate::records::put_length;
use crate::session::Session;

/// What an initiator sends first: protocol and version.
pub const PREFACE: &[u8; 13] = b"cell/noise/1\n";

/// Longest message of a handshake, in bytes: the third, two keys and a proof.
pub(crate) const HANDSHAKE_BYTES_MAX: usize = 32 + 48 + PROOF_BYTES + 16;

const SUITE: &str = "Noise_XX_25519_ChaChaPoly_BLAKE2s";

pub(crate) fn builder<'a>() -> Result<Builder<'a>, PeerError> {
    Ok(Builder::new(SUITE.parse()?))
}

/// A handshake that has not ended.
#[derive(Debug)]
pub struct Handshake {
    noise: Box<HandshakeState>,
    proof: [u8; PROOF_BYTES],
    /// Who must answer.
    wanted: Option<AccountId>,
    now_s: u64,
}

/// What a message led to.
#[derive(Debug)]
pub enum Step {
    /// Send this and wait for the next message.
    Reply(Handshake, Vec<u8>),
    /// The session; send this first, if there is something.
    Done(Session, Vec<u8>),
}

impl Handshake {
    /// Begins one with whom is wanted; the bytes to send. `now_s` is in seconds since 1970.
    pub fn initiate(
        credentials: &Credentials,
        wanted: AccountId,
        now_s: u64,
    ) -> Result<(Self, Vec<u8>), PeerError> {
        let noise = builder()?
            .local_private_key(&credentials.secret[..])?
            .prologue(PREFACE)?
            .build_initiator()?;
        let mut this =
            Self { noise: Box::new(noise), proof: credentials.proof, wanted: Some(wanted), now_s };
        let mut bytes = PREFACE.to_vec();
        // Nothing is encrypted yet, so nothing is said.
        bytes.extend(this.write(&[])?);
        Ok((this, bytes))
    }

    /// Waits for the first message, which follows the preface.
    pub fn respond(credentials: &Credentials, now_s: u64) -> Result<Self, PeerError> {
        let noise = builder()?
            .local_private_key(&credentials.secret[..])?
            .prologue(PREFACE)?
            .build_responder()?;
        Ok(Self { noise: Box::new(noise), proof: credentials.proof, wanted: None, now_s })
    }

    /// Takes the peer's next message.
    pub fn step(mut self, message: &[u8]) -> Result<Step, PeerError> {
        if message.len() > HANDSHAKE_BYTES_MAX {
            return Err(PeerError::RecordTooLong(message.len()));
        }
        let mut payload = vec![0; message.len()];
        let length = self.noise.read_message(message, &mut payload)?;
        payload.truncate(length);
        if !self.noise.is_initiator() && !self.noise.is_handshake_finished() {
            if !payload.is_empty() {
                return Err(PeerError::Unexpected("a first message that says something"));
            }
            let proof = self.proof;
            let reply = self.write(&proof)?;
            return Ok(Step::Reply(self, reply));
        }
        let public = self.noise.get_remote_static().unwrap_or_default().to_vec();
        let peer = credentials::check(&payload, &public, self.now_s)?;
        if let Some(wanted) = self.wanted.filter(|wanted| *wanted != peer) {
            return Err(PeerError::WrongPeer { found: peer, wanted });
        }
        let last = if self.noise.is_initiator() {
            let proof = self.proof;
            self.write(&proof)?
        } else {
            Vec::new()
        };
        Ok(Step::Done(
            Session::new(self.noise.into_transport_mode()?, peer, (payload, public)),
            last,
        ))
    }

    fn write(&mut self, payload: &[u8]) -> Result<Vec<u8>, PeerError> {
        let mut record = vec![0; 2 + HANDSHAKE_BYTES_MAX];
        let length = match record.get_mut(2..) {
            Some(message) => self.noise.write_message(payload, message)?,
            None => 0,
        };
        record.truncate(2 + length);
        put_length(&mut record, 0);
        Ok(record)
    }
}
