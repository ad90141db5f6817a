//! Registration tokens: what an app's backend gives to an installation that may register. Checked here offline, so that a backend that
//! is down or slow stops nobody who has a token already.
//!
//! # Format
//! A JWT in compact form (RFC 7519), which every backend has a library for: `HS256` with a secret shared with the edge, or `EdDSA` with
//! Ed25519, of which the edge has the public key only. Claims:
//!
//! | claim | |
//! |---|---|
//! | `aud` | the app key, or a list that has it |
//! | `exp` | required; not more than the configured lifetime ahead of the edge's time |
//! | `iat`, `nbf` | optional; not in the future; `exp` − `iat` is within the lifetime too |
//! | `sub` | optional. `sha256:<64 hexadecimal digits>` binds the token to the install secret with that SHA-256; anything else is the backend's own |
//!
//! Unknown claims are skipped. Clocks may differ by [`SKEW_MS`].
//!
//! # Invariants
//! - The key decides the algorithm: a key of one algorithm is a type of its own, and never gets bytes of the other. `none` doesn't parse.
//! - Nothing of the claims is looked at before the signature was found right.
//! - Every step is bounded by the token's length, [`crate::limits::REGISTER_TOKEN_BYTES`], and by [`KEYS`]. No clock is read.
//!
//! # Rejected
//! The `jsonwebtoken` crate: without a second provider of cryptography beside ring, which `deny.toml` forbids, it is base64 and a header
//! parser; it wants a provider for the whole process, reads the system's clock, and takes `crit` headers that it doesn't understand.

use std::path::{Path, PathBuf};

use data_encoding::{BASE64URL_NOPAD, HEXLOWER, HEXLOWER_PERMISSIVE};
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use ring::{digest, hmac};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{PrivatePkcs8KeyDer, SubjectPublicKeyInfoDer};
use serde::{Deserialize, Serialize, Serializer};

use crate::credential::InstallSecret;
use crate::ids::AppKey;
use crate::push::Millis;

/// Milliseconds by which clocks of backends may differ from the edge's.
pub const SKEW_MS: Millis = 60_000;
/// Keys of one app and algorithm: the one in use, and those before or after it.
pub const KEYS: usize = 4;
/// Bytes of an HMAC secret: RFC 7518 wants 32 at least, and more than a block of SHA-256 is hashed anyway.
const SECRET_BYTES: std::ops::RangeInclusive<usize> = 32..=64;
/// What stands before the 32 bytes of an Ed25519 public key in its DER form (RFC 8410).
const ED25519_SPKI: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
/// How `sub` begins if it binds the token to an install secret.
const BOUND: &str = "sha256:";

/// A key file that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// It can't be read.
    #[error("key file {}: {error}; `mooring keys token-key` makes one", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// It holds something else.
    #[error("key file {}: {wrong}; `mooring keys token-key` makes one", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        wrong: &'static str,
    },
}

/// Why a token is not taken: for the log; a device never learns which it was.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TokenError {
    /// There is none.
    #[error("no token")]
    Missing,
    /// Not three parts of base64url, or a header or claims that can't be.
    #[error("malformed token")]
    Malformed,
    /// An algorithm that isn't taken, or for which no key is configured.
    #[error("the token's algorithm has no key here")]
    Algorithm,
    /// Made with another key, or altered.
    #[error("wrong signature")]
    Signature,
    /// For another app.
    #[error("the token's audience is not this app")]
    Audience,
    /// Over.
    #[error("the token has expired")]
    Expired,
    /// Not yet, or issued in the future.
    #[error("the token is not valid yet: the backend's clock is ahead")]
    TooEarly,
    /// Good for longer than the configuration allows.
    #[error("the token's lifetime is over `token_max_s`")]
    TooLong,
    /// For another installation.
    #[error("the token is for another install secret")]
    OtherInstall,
}

/// What a token says.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Claims {
    /// The app.
    pub aud: Audience,
    /// Over from then on, seconds since 1970 UTC.
    #[serde(serialize_with = "whole")]
    pub exp: f64,
    /// When it was made, seconds since 1970 UTC.
    #[serde(default, skip_serializing_if = "Option::is_none", serialize_with = "whole_if_any")]
    pub iat: Option<f64>,
    /// Not before, seconds since 1970 UTC.
    #[serde(default, skip_serializing_if = "Option::is_none", serialize_with = "whole_if_any")]
    pub nbf: Option<f64>,
    /// See the module.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sub: Option<String>,
}

/// As a whole number where it is one: some libraries take no other.
// Serde says what it is called with, and what is cast isn't below 0.
#[allow(clippy::trivially_copy_pass_by_ref, clippy::cast_sign_loss)]
fn whole<S: Serializer>(seconds: &f64, to: S) -> Result<S::Ok, S::Error> {
    let is_whole = seconds.fract() == 0.0 && (0.0..9e15).contains(seconds);
    if is_whole { to.serialize_u64(*seconds as u64) } else { to.serialize_f64(*seconds) }
}

#[allow(clippy::ref_option)]
fn whole_if_any<S: Serializer>(seconds: &Option<f64>, to: S) -> Result<S::Ok, S::Error> {
    match seconds {
        Some(seconds) => whole(seconds, to),
        None => to.serialize_none(),
    }
}

/// For whom a token is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Audience {
    /// One.
    One(String),
    /// Any of these.
    Many(Vec<String>),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
enum Algorithm {
    #[serde(rename = "HS256")]
    Hmac,
    // RFC 9864 gives the same algorithm a name of its own.
    #[serde(rename = "EdDSA", alias = "Ed25519")]
    Ed25519,
}

#[derive(Serialize, Deserialize)]
struct Header {
    alg: Algorithm,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    typ: Option<String>,
    /// Extensions that must be understood: there is none that is.
    #[serde(default, skip_serializing)]
    crit: Option<serde::de::IgnoredAny>,
}

/// What the tokens of one app are checked with.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct VerifyingKeys {
    hmac: Vec<Vec<u8>>,
    ed25519: Vec<[u8; 32]>,
}

impl std::fmt::Debug for VerifyingKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "VerifyingKeys({} HS256, {} EdDSA)", self.hmac.len(), self.ed25519.len())
    }
}

impl VerifyingKeys {
    /// Whether there is none: no token is right then.
    pub fn is_empty(&self) -> bool {
        self.hmac.is_empty() && self.ed25519.is_empty()
    }

    /// Adds the secrets of a file: a line each, 64 to 128 hexadecimal digits.
    pub fn add_secrets(&mut self, path: &Path) -> Result<(), KeyError> {
        let text = read(path)?;
        let wrong = |wrong| KeyError::Content { path: path.into(), wrong };
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let secrets: Option<Vec<_>> = lines.map(secret_of).collect();
        let secrets = secrets
            .filter(|secrets| (1..=KEYS).contains(&secrets.len()))
            .ok_or(wrong("1 to 4 lines of 64 to 128 hexadecimal digits were expected"))?;
        self.hmac.extend(secrets);
        Ok(())
    }

    /// Adds the Ed25519 public keys of a PEM file (`BEGIN PUBLIC KEY`).
    pub fn add_public_keys(&mut self, path: &Path) -> Result<(), KeyError> {
        let text = read(path)?;
        let wrong = KeyError::Content {
            path: path.into(),
            wrong: "1 to 4 Ed25519 public keys in PEM (BEGIN PUBLIC KEY) were expected",
        };
        match public_keys_of(&text) {
            Some(keys) if (1..=KEYS).contains(&keys.len()) => {
                self.ed25519.extend(keys);
                Ok(())
            }
            _ => Err(wrong),
        }
    }

    /// Checks a token of an installation that wants to register with this app.
    pub fn check(
        &self,
        token: &[u8],
        app: &AppKey,
        install: &InstallSecret,
        now: Millis,
        max_ms: Millis,
    ) -> Result<Claims, TokenError> {
        let claims = self.verify(token)?;
        claims.check(app, now, max_ms)?;
        claims.check_install(install)?;
        Ok(claims)
    }

    /// The claims of a token whose signature is right. They are not checked.
    pub fn verify(&self, token: &[u8]) -> Result<Claims, TokenError> {
        if token.is_empty() {
            return Err(TokenError::Missing);
        }
        let (signed, signature) = split_last(token)?;
        let (header, claims) = split_last(signed)?;
        let header: Header = json_of(header)?;
        if header.crit.is_some() {
            return Err(TokenError::Malformed);
        }
        let signature = bytes_of(signature)?;
        let is_right = match header.alg {
            Algorithm::Hmac if self.hmac.is_empty() => return Err(TokenError::Algorithm),
            Algorithm::Ed25519 if self.ed25519.is_empty() => return Err(TokenError::Algorithm),
            Algorithm::Hmac => self.hmac.iter().any(|secret| {
                let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
                // Takes the same time wherever the two differ.
                hmac::verify(&key, signed, &signature).is_ok()
            }),
            Algorithm::Ed25519 => self
                .ed25519
                .iter()
                .any(|key| UnparsedPublicKey::new(&ED25519, key).verify(signed, &signature).is_ok()),
        };
        if is_right { json_of(claims) } else { Err(TokenError::Signature) }
    }
}

impl Claims {
    /// Whether they let an installation of this app register now.
    pub fn check(&self, app: &AppKey, now: Millis, max_ms: Millis) -> Result<(), TokenError> {
        let is_for_app = match &self.aud {
            Audience::One(one) => one == app.as_str(),
            Audience::Many(many) => many.iter().any(|one| one == app.as_str()),
        };
        if !is_for_app {
            return Err(TokenError::Audience);
        }
        let expires = millis(self.exp);
        if expires.saturating_add(SKEW_MS) <= now {
            return Err(TokenError::Expired);
        }
        let latest = now.saturating_add(SKEW_MS);
        if [self.nbf, self.iat].into_iter().flatten().any(|from| millis(from) > latest) {
            return Err(TokenError::TooEarly);
        }
        if expires.saturating_sub(max_ms) > self.iat.map_or(latest, millis) {
            return Err(TokenError::TooLong);
        }
        Ok(())
    }

    /// Whether they are for this installation, if they are for one.
    pub fn check_install(&self, install: &InstallSecret) -> Result<(), TokenError> {
        match self.sub.as_deref().and_then(|sub| sub.strip_prefix(BOUND)) {
            Some(bound) if !bound.eq_ignore_ascii_case(&sha256(install)) => Err(TokenError::OtherInstall),
            _ => Ok(()),
        }
    }
}

/// What tokens are made with: a backend has it, and whoever tries things out.
pub enum SigningKey {
    /// HS256.
    Hmac(Vec<u8>),
    /// `EdDSA`.
    Ed25519(Box<Ed25519KeyPair>),
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Hmac(_) => "SigningKey::Hmac(..)",
            Self::Ed25519(_) => "SigningKey::Ed25519(..)",
        })
    }
}

impl SigningKey {
    /// From a file: hexadecimal digits are a secret for HS256, of which the first line signs; PEM (`BEGIN PRIVATE KEY`) is for `EdDSA`.
    pub fn load(path: &Path) -> Result<Self, KeyError> {
        let text = read(path)?;
        let wrong = |wrong| KeyError::Content { path: path.into(), wrong };
        if let Some(secret) = text.lines().map(str::trim).find(|line| !line.is_empty()).and_then(secret_of) {
            return Ok(Self::Hmac(secret));
        }
        let der = PrivatePkcs8KeyDer::from_pem_slice(text.as_bytes()).map_err(|_| {
            wrong("neither a line of hexadecimal digits nor a PEM private key (BEGIN PRIVATE KEY)")
        })?;
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der.secret_pkcs8_der())
            .map_err(|_| wrong("the private key is not for Ed25519"))?;
        Ok(Self::Ed25519(Box::new(pair)))
    }

    /// The keys that check what it signs.
    pub fn verifying(&self) -> VerifyingKeys {
        let mut keys = VerifyingKeys::default();
        match self {
            Self::Hmac(secret) => keys.hmac.push(secret.clone()),
            Self::Ed25519(pair) => {
                keys.ed25519.extend(<[u8; 32]>::try_from(pair.public_key().as_ref()));
            }
        }
        keys
    }

    /// The algorithm by its name in a token.
    pub fn algorithm(&self) -> &'static str {
        match self {
            Self::Hmac(_) => "HS256",
            Self::Ed25519(_) => "EdDSA",
        }
    }

    /// A token.
    pub fn sign(&self, claims: &Claims) -> Result<String, serde_json::Error> {
        let alg = match self {
            Self::Hmac(_) => Algorithm::Hmac,
            Self::Ed25519(_) => Algorithm::Ed25519,
        };
        let header = Header { alg, typ: Some("JWT".into()), crit: None };
        let part = |json: Vec<u8>| BASE64URL_NOPAD.encode(&json);
        let signed = format!("{}.{}", part(serde_json::to_vec(&header)?), part(serde_json::to_vec(claims)?));
        let signature = match self {
            Self::Hmac(secret) => {
                let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
                BASE64URL_NOPAD.encode(hmac::sign(&key, signed.as_bytes()).as_ref())
            }
            Self::Ed25519(pair) => BASE64URL_NOPAD.encode(pair.sign(signed.as_bytes()).as_ref()),
        };
        Ok(format!("{signed}.{signature}"))
    }
}

/// The `sub` that binds a token to an install secret.
pub fn bound_to(install: &InstallSecret) -> String {
    format!("{BOUND}{}", sha256(install))
}

fn sha256(install: &InstallSecret) -> String {
    HEXLOWER.encode(digest::digest(&digest::SHA256, install.as_bytes()).as_ref())
}

fn read(path: &Path) -> Result<String, KeyError> {
    std::fs::read_to_string(path).map_err(|error| KeyError::Read { path: path.into(), error })
}

fn secret_of(line: &str) -> Option<Vec<u8>> {
    let bytes = HEXLOWER_PERMISSIVE.decode(line.as_bytes()).ok()?;
    SECRET_BYTES.contains(&bytes.len()).then_some(bytes)
}

fn public_keys_of(pem: &str) -> Option<Vec<[u8; 32]>> {
    SubjectPublicKeyInfoDer::pem_slice_iter(pem.as_bytes())
        .map(|der| der.ok()?.strip_prefix(&ED25519_SPKI[..])?.try_into().ok())
        .collect()
}

/// Before and behind the last dot.
fn split_last(text: &[u8]) -> Result<(&[u8], &[u8]), TokenError> {
    let at = text.iter().rposition(|byte| *byte == b'.').ok_or(TokenError::Malformed)?;
    Ok((&text[..at], &text[at + 1..]))
}

fn bytes_of(part: &[u8]) -> Result<Vec<u8>, TokenError> {
    BASE64URL_NOPAD.decode(part).map_err(|_| TokenError::Malformed)
}

fn json_of<T: serde::de::DeserializeOwned>(part: &[u8]) -> Result<T, TokenError> {
    serde_json::from_slice(&bytes_of(part)?).map_err(|_| TokenError::Malformed)
}

/// Seconds as JSON has them, in milliseconds. What is beyond either end is that end.
#[allow(clippy::cast_sign_loss, reason = "a cast from a float goes to the nearest end")]
fn millis(seconds: f64) -> Millis {
    (seconds * 1e3) as Millis
}

#[cfg(test)]
mod tests;
