//! Device credentials: stateless, so that any edge that holds the app's secret can check one without a table.
//!
//! A credential is 37 bytes: version (1), epoch (4 bytes, big-endian), and a BLAKE3 keyed hash (32 bytes) of what it binds:
//! the app key and the device id each after its length, and the epoch.
//!
//! Epochs n and n−1 are valid where n is the app's epoch in the configuration; n−1 asks for a renewal. Raising n twice revokes
//! every credential of an app that was not renewed in between. A [`Revocation`] does it for one device. The secret is known to
//! edges and issuers, never to an app.
//!
//! A device that registers brings 16 random bytes, its install secret, and its id is a keyed digest of the app and of them: whoever
//! repeats a registration gets the same id without a table, and nobody can compute another's.
//!
//! Each use of the secret has a key of its own, derived from it with BLAKE3's derive mode.
//!
//! Rejected: signatures (a check costs 50 times as much, and nobody but edges ever checks one); JWT (algorithm agility that
//! nothing here needs, and five times the bytes in each Hello).

use std::fmt;
use std::path::{Path, PathBuf};

use data_encoding::{BASE64URL_NOPAD, HEXLOWER_PERMISSIVE};

use crate::ids::AppKey;

const VERSION: u8 = 1;
const CREDENTIAL_CONTEXT: &str = "mooring 2026-11 device credential 1";
const DEVICE_ID_CONTEXT: &str = "mooring 2026-11 device id of an install secret 1";
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

    /// A keyed hash under the key of one use: of parts, each after its length, and then of what has a fixed length.
    fn hash(&self, context: &str, parts: &[&[u8]], fixed: &[u8]) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(&blake3::derive_key(context, &self.0));
        for part in parts {
            hasher.update(&(part.len() as u64).to_be_bytes()).update(part);
        }
        hasher.update(fixed).finalize()
    }

    fn credential_hash(&self, app: &AppKey, device_id: &str, epoch: u32) -> blake3::Hash {
        let parts = [app.as_str().as_bytes(), device_id.as_bytes()];
        self.hash(CREDENTIAL_CONTEXT, &parts, &epoch.to_be_bytes())
    }
}

/// What a device proves with that it is the same installation: 16 random bytes, made once and kept.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct InstallSecret([u8; INSTALL_SECRET_BYTES]);

/// Bytes of an install secret.
pub const INSTALL_SECRET_BYTES: usize = 16;

impl fmt::Debug for InstallSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("InstallSecret(..)")
    }
}

impl InstallSecret {
    /// A new one, from the operating system's random numbers.
    pub fn generate() -> Result<Self, SecretError> {
        let mut bytes = [0; INSTALL_SECRET_BYTES];
        getrandom::fill(&mut bytes).map_err(SecretError::Random)?;
        Ok(Self(bytes))
    }

    /// From its bytes. `None`: another number of them, or all zero, which is memory that nobody filled: all such devices would be one.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: [u8; INSTALL_SECRET_BYTES] = bytes.try_into().ok()?;
        (bytes != [0; INSTALL_SECRET_BYTES]).then_some(Self(bytes))
    }

    /// From 32 hexadecimal digits; space around them doesn't matter.
    pub fn from_hex(text: &str) -> Option<Self> {
        Self::from_bytes(&HEXLOWER_PERMISSIVE.decode(text.trim().as_bytes()).ok()?)
    }

    /// As 32 hexadecimal digits.
    pub fn to_hex(self) -> String {
        HEXLOWER_PERMISSIVE.encode(&self.0)
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8; INSTALL_SECRET_BYTES] {
        &self.0
    }
}

/// The id of the device that registers with this install secret: 32 hexadecimal digits.
pub fn device_id(secret: &Secret, app: &AppKey, install: &InstallSecret) -> String {
    let hash = secret.hash(DEVICE_ID_CONTEXT, &[app.as_str().as_bytes()], install.as_bytes());
    HEXLOWER_PERMISSIVE.encode(&hash.as_bytes()[..16])
}

/// What was revoked of one device. The default: nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Revocation {
    /// Credentials of an earlier epoch are refused.
    pub min_epoch: u32,
    /// No credential is taken, and registering gives none.
    pub locked: bool,
}

impl Revocation {
    /// Whether it ends a session with a credential of this epoch.
    pub fn ends(self, epoch: u32) -> bool {
        self.locked || epoch < self.min_epoch
    }

    /// A revocation of every credential given out so far, where the app's epoch is `current`.
    #[must_use]
    pub fn next(self, current: u32, allow_registration: bool) -> Self {
        match self.min_epoch.max(current).checked_add(1) {
            Some(min_epoch) => Self { min_epoch, locked: !allow_registration },
            // Above the last epoch there is none that could tell an old credential from a new one.
            None => Self { min_epoch: u32::MAX, locked: true },
        }
    }
}

/// Which epochs hold for one device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Epochs {
    /// That of new credentials.
    current: u32,
    revocation: Revocation,
}

impl Epochs {
    /// Where the app's epoch is `app`. A device whose credentials were revoked may be ahead of its app.
    pub fn of(app: u32, revocation: Revocation) -> Self {
        Self { current: app.max(revocation.min_epoch), revocation }
    }

    /// The epoch of new credentials; `None`: the device gets none.
    pub fn current(self) -> Option<u32> {
        (!self.revocation.locked).then_some(self.current)
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
    /// Genuine, but revoked for this device.
    #[error("credential of epoch {epoch}, but for this device those before {min_epoch} are revoked")]
    DeviceRevoked {
        /// The credential's.
        epoch: u32,
        /// The device's.
        min_epoch: u32,
    },
    /// Genuine, but the device is locked out.
    #[error(
        "the device is revoked, and may not register again: `mooring keys revoke --allow-registration` lets it"
    )]
    DeviceLocked,
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
    /// Its epoch.
    pub epoch: u32,
    /// It is of the epoch before: give the device a new one.
    pub renew: bool,
}

/// A credential for a device.
pub fn issue(secret: &Secret, app: &AppKey, device_id: &str, epoch: u32) -> Vec<u8> {
    let mut credential = Vec::with_capacity(BYTES);
    credential.push(VERSION);
    credential.extend_from_slice(&epoch.to_be_bytes());
    credential.extend_from_slice(secret.credential_hash(app, device_id, epoch).as_bytes());
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
    epochs: Epochs,
) -> Result<Verified, CredentialError> {
    let Ok(credential): Result<&[u8; BYTES], _> = credential.try_into() else {
        return Err(CredentialError::Malformed);
    };
    let [VERSION, e0, e1, e2, e3, given @ ..] = *credential else {
        return Err(CredentialError::Malformed);
    };
    let epoch = u32::from_be_bytes([e0, e1, e2, e3]);
    // `blake3::Hash` compares in constant time.
    if secret.credential_hash(app, device_id, epoch) != blake3::Hash::from_bytes(given) {
        return Err(CredentialError::Wrong);
    }
    let Epochs { current, revocation: Revocation { min_epoch, locked } } = epochs;
    if locked {
        return Err(CredentialError::DeviceLocked);
    }
    match current.checked_sub(epoch) {
        None => Err(CredentialError::Ahead { epoch, current }),
        Some(_) if epoch < min_epoch => Err(CredentialError::DeviceRevoked { epoch, min_epoch }),
        Some(age @ 0..=1) => Ok(Verified { epoch, renew: age == 1 }),
        Some(_) => Err(CredentialError::Revoked { epoch, current }),
    }
}

#[cfg(test)]
mod tests;
