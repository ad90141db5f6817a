//! Names of things: apps, devices, messages, batches, sessions, and places in the journal's one sequence.

use std::borrow::Borrow;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::num::NonZeroU64;
use std::sync::Arc;

use crate::limits;

/// The key of an app (app key), as issued by the push service: 1 to 32 bytes of ASCII letters, digits, `-`, `_`, `.`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AppKey(Arc<str>);

impl AppKey {
    /// Checks and takes a key; `None` if it is none.
    pub fn parse(text: &str) -> Option<Self> {
        is_name(text, limits::APP_KEY_BYTES).then(|| Self(text.into()))
    }

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// So that maps by key are asked with a text that isn't one's own.
impl Borrow<str> for AppKey {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for AppKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for AppKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AppKey({})", self.0)
    }
}

/// Whether `text` is 1 to `max` bytes of ASCII letters, digits, `-`, `_`, `.`, `:`.
pub fn is_name(text: &str, max: usize) -> bool {
    (1..=max).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b':'))
}

/// The key of the digest that makes [`DeviceKey`]s: part of a data directory, never changed.
#[derive(Clone)]
pub struct DigestKey(pub [u8; 32]);

impl fmt::Debug for DigestKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DigestKey(..)")
    }
}

/// A device: a 16-byte keyed digest of (app key, device id). An app never sees another's devices because the app is part of it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct DeviceKey(pub [u8; 16]);

impl Hash for DeviceKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.spread());
    }
}

/// Takes the number that is hashed as the hash, of several what they make by XOR: for maps whose keys are evenly spread already, like [`DeviceKey`].
#[derive(Clone, Copy, Default, Debug)]
pub struct SpreadHasher(u64);

impl Hasher for SpreadHasher {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(byte);
        }
    }

    fn write_u64(&mut self, number: u64) {
        self.0 ^= number;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// Builds [`SpreadHasher`]s.
pub type BuildSpread = std::hash::BuildHasherDefault<SpreadHasher>;

impl DeviceKey {
    /// The key of `device_id` under `app`.
    pub fn of(key: &DigestKey, app: &AppKey, device_id: &str) -> Self {
        let mut input = [0u8; 1 + limits::APP_KEY_BYTES + limits::DEVICE_ID_BYTES];
        let (a, d) = (app.as_str().as_bytes(), device_id.as_bytes());
        let len = 1 + a.len() + d.len();
        let digest = if len <= input.len() {
            input[0] = a.len() as u8;
            input[1..=a.len()].copy_from_slice(a);
            input[1 + a.len()..len].copy_from_slice(d);
            blake3::keyed_hash(&key.0, &input[..len])
        } else {
            // Over-long ids name no device; a digest of them is harmless.
            blake3::keyed_hash(&key.0, &[&[a.len() as u8], a, d].concat())
        };
        let mut short = [0; 16];
        short.copy_from_slice(&digest.as_bytes()[..16]);
        Self(short)
    }

    /// The first eight bytes as a number: evenly spread, as the digest is keyed.
    pub fn spread(&self) -> u64 {
        let mut first = [0; 8];
        first.copy_from_slice(&self.0[..8]);
        u64::from_le_bytes(first)
    }
}

impl fmt::Debug for DeviceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceKey({})", data_encoding::HEXLOWER.encode(&self.0))
    }
}

/// An account of an app: a keyed digest that says whether two are the same. Never 0, so that "none" costs nothing.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct AccountDigest(NonZeroU64);

impl AccountDigest {
    /// The digest of `account` under `app`.
    pub fn of(key: &DigestKey, app: &AppKey, account: &str) -> Self {
        let mut hasher = blake3::Hasher::new_keyed(&key.0);
        // No app key has 0 bytes: no device key is made of this input.
        hasher.update(&[0, app.as_str().len() as u8]);
        hasher.update(app.as_str().as_bytes());
        hasher.update(account.as_bytes());
        let mut first = [0; 8];
        first.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
        let number = NonZeroU64::new(u64::from_le_bytes(first));
        Self(number.unwrap_or(NonZeroU64::MAX))
    }

    /// The one with this number; `None`: 0.
    pub fn from_number(number: u64) -> Option<Self> {
        NonZeroU64::new(number).map(Self)
    }

    /// As a number, never 0.
    pub fn number(self) -> u64 {
        self.0.get()
    }
}

/// A message: not 0, given by the router, stable over channels and redeliveries.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct MessageId(pub u64);

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A batch, unique per app: 1 to 64 bytes, given by the router.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct BatchId(Arc<str>);

impl BatchId {
    /// Checks and takes an id; `None` if it is none.
    pub fn parse(text: &str) -> Option<Self> {
        is_name(text, limits::BATCH_ID_BYTES).then(|| Self(text.into()))
    }

    /// Of a batch whose record is damaged: nobody knows it. Empty, as no other is.
    pub fn lost() -> Self {
        Self("".into())
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A place in the journal's one sequence, from 1. 0: before everything.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct Seq(pub u64);

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A history of a data directory, which begins with a start: a random number, not 0. A cursor is a sequence in one of them: see
/// [`crate::store::Store::is_in_history`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct HistoryId(NonZeroU64);

impl HistoryId {
    /// The one of this number; `None`: 0.
    pub fn new(number: u64) -> Option<Self> {
        NonZeroU64::new(number).map(Self)
    }

    /// A new one.
    pub fn random(rng: &mut impl rand::Rng) -> Self {
        Self(rng.random())
    }

    /// As a number, never 0.
    pub fn get(self) -> u64 {
        self.0.get()
    }
}

impl fmt::Display for HistoryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Distinguishes the sessions that ever used a slot: grows with every authenticated session of this process.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Generation(pub u64);

/// A shard, from 0.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ShardId(pub u16);

/// Where a session lives: enough to reach it, and to notice that it is gone.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SessionRef {
    /// The newest wins.
    pub generation: Generation,
    /// The slot in its shard.
    pub slot: u32,
    /// The shard it belongs to for life.
    pub shard: ShardId,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_device_id_under_two_apps_is_two_devices() {
        let key = DigestKey([7; 32]);
        let (a, b) = (AppKey::parse("app1"), AppKey::parse("app2"));
        let (a, b) = (a.expect("valid"), b.expect("valid"));
        assert_ne!(DeviceKey::of(&key, &a, "d"), DeviceKey::of(&key, &b, "d"));
        // The length is part of the input: moving a character between the two names another device.
        let (c, d) = (AppKey::parse("ab"), AppKey::parse("a"));
        assert_ne!(
            DeviceKey::of(&key, &c.expect("valid"), "c"),
            DeviceKey::of(&key, &d.expect("valid"), "bc")
        );
    }

    #[test]
    fn names_are_checked() {
        assert!(AppKey::parse("23456789").is_some());
        for bad in ["", "has space", "ü", &"x".repeat(33)] {
            assert!(AppKey::parse(bad).is_none(), "{bad}");
        }
        assert!(BatchId::parse(&"b".repeat(65)).is_none());
    }
}
