//! Attributes of devices in memory: what devices of one model say alike is shared, and what is the device's own stands beside it.
//!
//! There is a fixed number of places, a few for each digest of what is common; whoever comes last has one of them. So it is bounded without being
//! swept, and shards use it as well as the store's thread.
//!
//! Rejected: a map of everything that is in memory. Where each device has attributes of its own it saves nothing, and costs an entry each.

use std::sync::{Arc, Mutex, PoisonError};

use crate::push::{Attributes, Common, Parts};

/// Digests, and places for each.
const DIGESTS: usize = 2_048;
const PLACES: usize = 4;

/// Tells one device's attributes from those that it had before; stable, as checkpoints have it.
pub(super) fn digest(attributes: &Attributes) -> u64 {
    digest_of(attributes.parts())
}

/// The same for those that stand in a row or a record, whole or in parts.
pub(super) fn digest_of<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> u64 {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(part);
    }
    let mut first = [0; 8];
    first.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    u64::from_le_bytes(first)
}

/// What is common, the last to come first.
type Places = [Option<Arc<Common>>; PLACES];

/// See the module.
#[derive(Debug)]
pub(super) struct SharedAttributes(Box<[Mutex<Places>]>);

impl Default for SharedAttributes {
    fn default() -> Self {
        Self((0..DIGESTS).map(|_| Mutex::default()).collect())
    }
}

impl SharedAttributes {
    /// The same attributes, with what is common in one copy if somebody had it lately.
    pub(super) fn share(&self, attributes: &Attributes) -> Attributes {
        self.of_bytes(&attributes.bytes())
    }

    /// The same for those that stand in a row or a record.
    pub(super) fn of_bytes(&self, bytes: &[u8]) -> Attributes {
        let parts = Parts::of(bytes);
        let [before, behind] = parts.common();
        let digest = crc32c::crc32c_append(crc32c::crc32c(before), behind) as usize;
        let mut places = self.0[digest % DIGESTS].lock().unwrap_or_else(PoisonError::into_inner);
        let known =
            places.iter().position(|place| place.as_ref().is_some_and(|common| parts.is_with(common)));
        let at = known.unwrap_or(PLACES - 1);
        if known.is_none() {
            places[at] = Some(Arc::new(parts.to_common()));
        }
        places[..=at].rotate_right(1);
        match &places[0] {
            Some(common) => parts.with(common.clone()),
            None => Attributes::whole(bytes.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::wire::pb::device as pb;

    fn said(n: u64) -> Vec<u8> {
        pb::Attributes { brand: "vivo".into(), utdid: format!("{n:024}"), ..Default::default() }
            .encode_to_vec()
    }

    #[test]
    fn what_is_common_is_shared_and_the_number_kept_is_bounded() {
        let shared = SharedAttributes::default();
        let all: Vec<Attributes> = (0..20).map(|n| shared.of_bytes(&said(n))).collect();
        assert_eq!(all[19].beside(), 0, "it is shared");
        for (attributes, n) in all.iter().zip(0..) {
            assert_eq!(*attributes, Attributes::whole(said(n).into()));
        }
        for n in 0..3 * (DIGESTS * PLACES) as u64 {
            assert_eq!(*shared.of_bytes(&n.to_le_bytes()).bytes(), n.to_le_bytes());
        }
        let kept =
            shared.0.iter().map(|places| places.lock().expect("not poisoned").iter().flatten().count());
        assert!(kept.sum::<usize>() <= DIGESTS * PLACES);
    }

    #[test]
    fn a_few_hundred_models_stay_beside_each_other() {
        let (shared, model) = (SharedAttributes::default(), |n: u32| format!("model {}", n % 500));
        let all: Vec<Attributes> = (0..20 * 500).map(|n| shared.of_bytes(model(n).as_bytes())).collect();
        assert!(all.iter().all(|attributes| attributes.beside() == 0));
    }

    #[test]
    fn the_digest_is_what_checkpoints_have() {
        let bytes = said(7);
        let mut first = [0; 8];
        first.copy_from_slice(&blake3::hash(&bytes).as_bytes()[..8]);
        let (whole, shared) =
            (Attributes::whole((&*bytes).into()), SharedAttributes::default().of_bytes(&bytes));
        assert_eq!([digest(&whole), digest(&shared)], [u64::from_le_bytes(first); 2]);
        assert_ne!(digest(&whole), digest(&Attributes::whole(said(8).into())));
    }
}
