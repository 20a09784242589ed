//! The key of a process' sessions, and the identity's word for it.
//!
//! The process that talks to the network holds these and never the identity itself: what it could lose
//! expires.

use cell_abi::AccountId;
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use zeroize::Zeroizing;

use crate::error::PeerError;
use crate::handshake::builder;

/// What the identity signs before the session's public key and the time.
const SIGNED: &[u8] = b"cell/noise/v1/static\0";
/// How long the identity's word holds.
pub(crate) const VALID_S_MAX: u64 = 7 * 24 * 3600;
/// How far two machines' clocks may be apart.
pub(crate) const CLOCKS_APART_S_MAX: u64 = 600;

/// Bytes of a [`Proof`]: account, time as eight bytes, little endian, signature.
pub(crate) const PROOF_BYTES: usize = 32 + 8 + 64;

/// A secret X25519 key, and the Ed25519 identity's signature over its public half.
#[derive(Clone)]
pub struct Credentials {
    pub(crate) secret: Zeroizing<[u8; 32]>,
    pub(crate) proof: [u8; PROOF_BYTES],
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").finish_non_exhaustive()
    }
}

impl Credentials {
    /// Bytes that they take.
    pub const BYTES: usize = 32 + PROOF_BYTES;

    /// A new key, signed for a week from now, which is in seconds since 1970.
    pub fn new(identity: &SigningKey, now_s: u64) -> Result<Self, PeerError> {
        let pair = builder()?.generate_keypair()?;
        let mut secret = Zeroizing::new([0; 32]);
        let wrong = || PeerError::Host("a key of another length".into());
        secret.copy_from_slice(pair.private.get(..32).ok_or_else(wrong)?);
        let _ = Zeroizing::new(pair.private);
        let expires = (now_s + VALID_S_MAX).to_le_bytes();
        let signature = identity.sign(&signed(&pair.public, expires));
        let mut proof = [0; PROOF_BYTES];
        let account = identity.verifying_key().to_bytes();
        let parts = [&account[..], &expires, &signature.to_bytes()];
        for (to, from) in proof.iter_mut().zip(parts.into_iter().flatten()) {
            *to = *from;
        }
        Ok(Self { secret, proof })
    }

    /// As they are handed to another process: the secret key, then the proof.
    pub fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new([&self.secret[..], &self.proof].concat())
    }

    /// The same back.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, PeerError> {
        let wrong = || PeerError::Host("credentials of another length".into());
        let (secret, proof) = bytes.split_first_chunk::<32>().ok_or_else(wrong)?;
        Ok(Self { secret: Zeroizing::new(*secret), proof: proof.try_into().map_err(|_| wrong())? })
    }
}

/// Whose key `public` is, if the proof proves it now. Who was told of a handshake by another process need
/// not believe who it was with.
pub fn check(proof: &[u8], public: &[u8], now_s: u64) -> Result<AccountId, PeerError> {
    let wrong = || PeerError::Unexpected("a proof of another length");
    let (account, rest) = proof.split_first_chunk::<32>().ok_or_else(wrong)?;
    let (expires, signature) = rest.split_first_chunk::<8>().ok_or_else(wrong)?;
    let signature: [u8; 64] = signature.try_into().map_err(|_| wrong())?;
    let peer = AccountId::from_bytes(*account);
    let key = VerifyingKey::from_bytes(account).map_err(|_| PeerError::Proof(peer))?;
    key.verify_strict(&signed(public, *expires), &Signature::from_bytes(&signature))
        .map_err(|_| PeerError::Proof(peer))?;
    let expires = u64::from_le_bytes(*expires);
    let latest = now_s.saturating_add(VALID_S_MAX).saturating_add(CLOCKS_APART_S_MAX);
    if expires.saturating_add(CLOCKS_APART_S_MAX) < now_s || expires > latest {
        return Err(PeerError::Expired(peer));
    }
    Ok(peer)
}

fn signed(public: &[u8], expires: [u8; 8]) -> Vec<u8> {
    [SIGNED, public, &expires].concat()
}
