//! The keys of QUIC that outlive the process, from one secret in the data directory: with them an edge that was killed and started again tells
//! the devices of its dead connections at once that those are gone.

use std::io;
use std::path::Path;
use std::sync::Arc;

use quinn_proto::crypto::{HandshakeTokenKey, HmacKey};
use ring::{hkdf, hmac};

use crate::credential::{Secret, SecretError};
use crate::pki::PkiError;
use crate::pki::file::{self, Existing, Privacy};

/// The file of the secret, 64 hexadecimal digits.
const FILE: &str = "quic.secret";

/// The secret can't be read or made.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// It is there, but can't be used; without it a new one is made.
    #[error("{0}; without the file a new one is made, and devices of before notice a crash later")]
    Read(#[from] SecretError),
    /// It can't be written.
    #[error(transparent)]
    Write(#[from] PkiError),
}

/// Keys derived from the secret.
#[derive(Clone)]
pub struct Keys([u8; 32]);

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Keys(..)")
    }
}

impl Keys {
    /// Those of this data directory, made if there are none. Touches files.
    pub fn of(data_dir: &Path) -> Result<Self, KeysError> {
        let path = data_dir.join(FILE);
        let secret = match Secret::load(&path) {
            Err(SecretError::Read { error, .. }) if error.kind() == io::ErrorKind::NotFound => {
                let secret = Secret::generate()?;
                file::write(&path, &format!("{}\n", secret.to_hex()), Privacy::Secret, Existing::Keep)?;
                secret
            }
            loaded => loaded?,
        };
        Ok(Self(blake3::derive_key("mooring 1 quic", secret.to_hex().as_bytes())))
    }

    /// Of the tokens by which a device proves that it is reached at its address.
    pub(super) fn tokens(&self) -> Arc<dyn HandshakeTokenKey> {
        let key = blake3::derive_key("mooring 1 quic tokens", &self.0);
        Arc::new(hkdf::Salt::new(hkdf::HKDF_SHA256, &[]).extract(&key))
    }

    /// Of stateless resets.
    pub(super) fn resets(&self) -> Arc<dyn HmacKey> {
        let key = blake3::derive_key("mooring 1 quic resets", &self.0);
        Arc::new(hmac::Key::new(hmac::HMAC_SHA256, &key))
    }

    /// Of the tags in connection ids.
    pub(super) fn ids(&self) -> [u8; 32] {
        blake3::derive_key("mooring 1 quic connection ids", &self.0)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn they_are_made_once_for_their_owner_only_and_a_damaged_secret_is_named() {
        let dir = tempfile::tempdir().expect("a directory");
        let keys = Keys::of(dir.path()).expect("made");
        let path = dir.path().join(FILE);
        let mode = std::fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(Keys::of(dir.path()).expect("read").0, keys.0);
        assert_ne!(keys.ids(), keys.0);
        assert_eq!(format!("{keys:?}"), "Keys(..)");
        let other = tempfile::tempdir().expect("a directory");
        assert_ne!(Keys::of(other.path()).expect("made").0, keys.0);
        std::fs::write(&path, "no digits").expect("written");
        let error = Keys::of(dir.path()).expect_err("damaged").to_string();
        assert!(error.contains(FILE), "{error}");
    }
}
