//! Attributes of devices in memory: equal ones are shared, as those of one model of phone are where nothing among them is the device's own.
//!
//! There is a fixed number of places, and a digest chooses one; whoever comes last has it. So it is bounded without being swept, and shards
//! use it as well as the store's thread.
//!
//! Rejected: a map of everything that is in memory. Where each device has attributes of its own it saves nothing, and costs an entry each.

use std::sync::{Arc, Mutex, PoisonError};

use crate::push::Attributes;

/// Attributes that are shared with whoever comes next.
const PLACES: usize = 4_096;

/// Tells one device's attributes from those that it had before; stable, as checkpoints have it.
pub(super) fn digest(attributes: &[u8]) -> u64 {
    let mut first = [0; 8];
    first.copy_from_slice(&blake3::hash(attributes).as_bytes()[..8]);
    u64::from_le_bytes(first)
}

/// See the module.
#[derive(Debug)]
pub(super) struct SharedAttributes(Box<[Mutex<Option<Attributes>>]>);

impl Default for SharedAttributes {
    fn default() -> Self {
        Self((0..PLACES).map(|_| Mutex::default()).collect())
    }
}

impl SharedAttributes {
    /// The same attributes, in one copy if somebody had them lately. `digest` is theirs.
    pub(super) fn share(&self, digest: u64, attributes: Attributes) -> Attributes {
        self.place(digest, &attributes.0.clone(), || attributes)
    }

    /// The same for those that stand in a row or a record.
    pub(super) fn of_bytes(&self, bytes: &[u8]) -> Attributes {
        self.place(digest(bytes), bytes, || Attributes(Arc::from(bytes)))
    }

    fn place(&self, digest: u64, bytes: &[u8], new: impl FnOnce() -> Attributes) -> Attributes {
        let mut place = self.0[digest as usize % PLACES].lock().unwrap_or_else(PoisonError::into_inner);
        match &*place {
            Some(known) if *known.0 == *bytes => known.clone(),
            _ => place.insert(new()).clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_ones_are_shared_and_the_number_kept_is_bounded() {
        let shared = SharedAttributes::default();
        let first = shared.of_bytes(b"vivo");
        let again = Attributes(b"vivo".as_slice().into());
        assert!(Arc::ptr_eq(&first.0, &shared.share(digest(b"vivo"), again).0));
        for n in 0..3 * PLACES as u64 {
            assert_eq!(*shared.of_bytes(&n.to_le_bytes()).0, n.to_le_bytes());
        }
        let kept = shared.0.iter().filter(|place| place.lock().expect("not poisoned").is_some());
        assert!(kept.count() <= PLACES);
    }

    #[test]
    fn the_digest_is_what_checkpoints_have() {
        assert_eq!(digest(b"attributes"), digest(b"attributes"));
        assert_ne!(digest(b"attributes"), digest(b"attributes "));
    }
}
