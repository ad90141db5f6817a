//! Device credentials: stateless, so that any edge that holds the app's secret can check one without a table.
//!
//! A credential is 37 bytes: version (1), epoch (4 bytes, big-endian), and a BLAKE3 keyed hash (32 bytes) of what it binds:
//! a label that sets this use of the secret apart from others, the app key and the device id each after its length, and the epoch.
//!
//! Epochs n and n−1 are valid where n is the app's epoch in the configuration; n−1 asks for a renewal. Raising n twice revokes
//! every credential of an app that was not renewed in between. The secret is known to edges and issuers, never to an app.
//!
//! Rejected: signatures (a check costs 50 times as much, and nobody but edges ever checks one); JWT (algorithm agility that
//! nothing here needs, and five times the bytes in each Hello).

use std::fmt;
use std::path::{Path, PathBuf};

use data_encoding::{BASE64URL_NOPAD, HEXLOWER_PERMISSIVE};

use crate::ids::AppKey;

const VERSION: u8 = 1;
const LABEL: &[u8] = b"mooring device credential 1";
/// Bytes of version, epoch and hash.
const BYTES: usize = 1 + 4 + 32;

/// An app's secret: 32 bytes, in files as 64 hexadecimal digits.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret([u8; 32]);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// A secret can't be had.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// Its file can't be read.
    #[error("secret file {}: {error}; `mooring keys app-secret --out FILE` makes one", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// Its file holds something else.
    #[error("secret file {} must hold 64 hexadecimal digits; `mooring keys app-secret --out FILE` makes one", path.display())]
    Content {
        /// The file.
        path: PathBuf,
    },
    /// The operating system gives no random numbers.
    #[error("no random numbers from the operating system: {0}")]
    Random(getrandom::Error),
}

impl Secret {
    /// A new one, from the operating system's random numbers.
    pub fn generate() -> Result<Self, SecretError> {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).map_err(SecretError::Random)?;
        Ok(Self(bytes))
    }

    /// From its bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// From 64 hexadecimal digits; space around them doesn't matter.
    pub fn from_hex(text: &str) -> Option<Self> {
        let bytes = HEXLOWER_PERMISSIVE.decode(text.trim().as_bytes()).ok()?;
        Some(Self(bytes.try_into().ok()?))
    }

    /// From a file.
    pub fn load(path: &Path) -> Result<Self, SecretError> {
        let text = std::fs::read(path).map_err(|error| SecretError::Read { path: path.into(), error })?;
        std::str::from_utf8(&text)
            .ok()
            .and_then(Self::from_hex)
            .ok_or_else(|| SecretError::Content { path: path.into() })
    }

    /// As 64 hexadecimal digits: for its file only.
    pub fn to_hex(&self) -> String {
        HEXLOWER_PERMISSIVE.encode(&self.0)
    }

    fn hash(&self, app: &AppKey, device_id: &str, epoch: u32) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(LABEL);
        for part in [app.as_str(), device_id] {
            hasher.update(&(part.len() as u64).to_be_bytes()).update(part.as_bytes());
        }
        hasher.update(&epoch.to_be_bytes());
        hasher.finalize()
    }
}

/// Why a credential is not taken: for the log; a device never learns which it was.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CredentialError {
    /// Not 37 bytes of version 1.
    #[error("malformed credential")]
    Malformed,
    /// Not made with this secret for this app, device and epoch.
    #[error("wrong credential")]
    Wrong,
    /// Genuine, but of an epoch that is over.
    #[error("credential of epoch {epoch}, which is revoked: the app's epoch is {current}")]
    Revoked {
        /// The credential's.
        epoch: u32,
        /// The app's.
        current: u32,
    },
    /// Genuine, but its issuer is ahead of this edge.
    #[error("credential of epoch {epoch}, but this edge's configuration has epoch {current}: raise it")]
    Ahead {
        /// The credential's.
        epoch: u32,
        /// The app's.
        current: u32,
    },
}

/// A genuine credential.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Verified {
    /// It is of the epoch before: give the device a new one.
    pub renew: bool,
}

/// A credential for a device.
pub fn issue(secret: &Secret, app: &AppKey, device_id: &str, epoch: u32) -> Vec<u8> {
    let mut credential = Vec::with_capacity(BYTES);
    credential.push(VERSION);
    credential.extend_from_slice(&epoch.to_be_bytes());
    credential.extend_from_slice(secret.hash(app, device_id, epoch).as_bytes());
    credential
}

/// A credential as text, for files and command lines: base64url without padding.
pub fn to_text(credential: &[u8]) -> String {
    BASE64URL_NOPAD.encode(credential)
}

/// The credential that a text stands for; space around it doesn't matter. It isn't checked.
pub fn from_text(text: &str) -> Option<Vec<u8>> {
    BASE64URL_NOPAD.decode(text.trim().as_bytes()).ok()
}

/// Checks a credential. The comparison takes the same time wherever the two differ.
pub fn verify(
    secret: &Secret,
    app: &AppKey,
    device_id: &str,
    credential: &[u8],
    current: u32,
) -> Result<Verified, CredentialError> {
    let Ok(credential): Result<&[u8; BYTES], _> = credential.try_into() else {
        return Err(CredentialError::Malformed);
    };
    let [VERSION, e0, e1, e2, e3, given @ ..] = *credential else {
        return Err(CredentialError::Malformed);
    };
    let epoch = u32::from_be_bytes([e0, e1, e2, e3]);
    // `blake3::Hash` compares in constant time.
    if secret.hash(app, device_id, epoch) != blake3::Hash::from_bytes(given) {
        return Err(CredentialError::Wrong);
    }
    match current.checked_sub(epoch) {
        None => Err(CredentialError::Ahead { epoch, current }),
        Some(age @ 0..=1) => Ok(Verified { renew: age == 1 }),
        Some(_) => Err(CredentialError::Revoked { epoch, current }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn app(text: &str) -> AppKey {
        AppKey::parse(text).expect("valid")
    }

    #[test]
    fn a_credential_holds_for_its_secret_app_device_and_epochs_only() {
        let secret = Secret::from_bytes([7; 32]);
        let credential = issue(&secret, &app("demo"), "d-1", 4);
        assert_eq!(credential.len(), BYTES);
        assert!(credential.len() <= crate::limits::CREDENTIAL_BYTES);
        assert_eq!(from_text(&format!(" {}\n", to_text(&credential))), Some(credential.clone()));
        let check = |app: &AppKey, device, current| verify(&secret, app, device, &credential, current);
        assert_eq!(check(&app("demo"), "d-1", 4), Ok(Verified { renew: false }));
        assert_eq!(check(&app("demo"), "d-1", 5), Ok(Verified { renew: true }));
        assert_eq!(check(&app("demo"), "d-1", 6), Err(CredentialError::Revoked { epoch: 4, current: 6 }));
        assert_eq!(check(&app("demo"), "d-1", 3), Err(CredentialError::Ahead { epoch: 4, current: 3 }));
        assert_eq!(check(&app("demo"), "d-2", 4), Err(CredentialError::Wrong));
        assert_eq!(check(&app("demo2"), "d-1", 4), Err(CredentialError::Wrong));
        // A character that moves from one to the other names another pair.
        assert_eq!(check(&app("dem"), "od-1", 4), Err(CredentialError::Wrong));
        let other = Secret::from_bytes([8; 32]);
        assert_eq!(verify(&other, &app("demo"), "d-1", &credential, 4), Err(CredentialError::Wrong));
    }

    #[test]
    fn every_changed_bit_and_length_is_refused() {
        let secret = Secret::from_bytes([7; 32]);
        let credential = issue(&secret, &app("demo"), "d-1", 1);
        for bit in 0..credential.len() * 8 {
            let mut changed = credential.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(verify(&secret, &app("demo"), "d-1", &changed, 1).is_err(), "bit {bit}");
        }
        for length in 0..credential.len() {
            let result = verify(&secret, &app("demo"), "d-1", &credential[..length], 1);
            assert_eq!(result, Err(CredentialError::Malformed));
        }
        let longer = [&credential[..], &[0]].concat();
        assert_eq!(verify(&secret, &app("demo"), "d-1", &longer, 1), Err(CredentialError::Malformed));
    }

    #[test]
    fn secrets_stay_out_of_debug_output_and_survive_their_file() {
        let secret = Secret::generate().expect("random numbers");
        assert_eq!(format!("{secret:?}"), "Secret(..)");
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("app.secret");
        std::fs::write(&path, secret.to_hex() + "\n").expect("written");
        assert_eq!(Secret::load(&path).expect("loaded"), secret);
        std::fs::write(&path, "no secret").expect("written");
        assert!(matches!(Secret::load(&path), Err(SecretError::Content { .. })));
        assert!(matches!(Secret::load(&dir.path().join("none")), Err(SecretError::Read { .. })));
    }
}
