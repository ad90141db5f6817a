//! What a device says of itself: as it came, or as it is kept for long, where what many devices say alike is apart from what one of them says alone.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

/// The checked attributes of a device: an encoded `device.v1.Attributes` without request id and push state, within limits. Equal if their bytes are.
#[derive(Clone, Debug)]
pub struct Attributes(Form);

/// The longest utdid that is kept apart from the rest; they are 24 bytes.
const OWN_BYTES: usize = 24;
/// The utdid in its encoding: field 12, bytes with their length.
const UTDID: u8 = 12 << 3 | 2;

#[derive(Clone, Debug)]
enum Form {
    Whole(Arc<[u8]>),
    Parted {
        /// The utdid, and zeros up to its end.
        own: [u8; OWN_BYTES],
        common: Arc<Common>,
    },
}

/// Attributes without the utdid, as many devices of one model have them.
#[derive(PartialEq, Eq, Debug)]
pub struct Common {
    bytes: Box<[u8]>,
    /// Where the utdid stands, behind its length.
    at: u16,
    /// Its length.
    own: u8,
}

impl Common {
    /// Bytes of it.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

/// Attributes whose common part is looked for.
#[derive(Clone, Debug)]
pub struct Parts<'a> {
    bytes: &'a [u8],
    own: Range<usize>,
}

impl<'a> Parts<'a> {
    /// Of these bytes. Where they aren't as attributes are encoded, or have no utdid that is short enough, all of them are common.
    pub fn of(bytes: &'a [u8]) -> Self {
        Self { bytes, own: utdid(bytes).unwrap_or(bytes.len()..bytes.len()) }
    }

    /// What is common: before the utdid, and behind it.
    pub fn common(&self) -> [&'a [u8]; 2] {
        [&self.bytes[..self.own.start], &self.bytes[self.own.end..]]
    }

    /// Whether this is the common part.
    pub fn is_with(&self, common: &Common) -> bool {
        let [before, behind] = self.common();
        usize::from(common.at) == before.len()
            && usize::from(common.own) == self.own.len()
            && common.bytes.strip_prefix(before) == Some(behind)
    }

    /// The common part.
    pub fn to_common(&self) -> Common {
        let at = self.own.start.min(usize::from(u16::MAX)) as u16;
        Common { bytes: self.common().concat().into(), at, own: self.own.len() as u8 }
    }

    /// The attributes, with this as their common part: it is.
    pub fn with(self, common: Arc<Common>) -> Attributes {
        debug_assert!(self.is_with(&common));
        let mut own = [0; OWN_BYTES];
        own[..self.own.len()].copy_from_slice(&self.bytes[self.own]);
        Attributes(Form::Parted { own, common })
    }
}

/// Where the utdid stands in encoded attributes, if it is there and short enough.
fn utdid(bytes: &[u8]) -> Option<Range<usize>> {
    let mut at = 0;
    while let Some((&tag, rest)) = bytes.get(at..)?.split_first() {
        let (head, len) = match (tag & 0x87, rest) {
            (0, _) => (2 + rest.iter().position(|byte| byte & 0x80 == 0)?, 0),
            (2, &[len @ ..0x80, ..]) => (2, usize::from(len)),
            (2, &[low, high @ ..0x80, ..]) => (3, usize::from(low & 0x7f) | usize::from(high) << 7),
            _ => return None,
        };
        let text = at + head..at + head + len;
        if tag == UTDID {
            let is_kept = len <= OWN_BYTES && text.end <= bytes.len() && text.end < usize::from(u16::MAX);
            return is_kept.then_some(text);
        }
        at = text.end;
    }
    None
}

impl Attributes {
    /// As they came.
    pub fn whole(bytes: Arc<[u8]>) -> Self {
        Self(Form::Whole(bytes))
    }

    /// Bytes of them.
    pub fn len(&self) -> usize {
        self.parts().iter().map(|part| part.len()).sum()
    }

    /// Whether nothing is said.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Their bytes, one part behind the other.
    pub fn parts(&self) -> [&[u8]; 3] {
        match &self.0 {
            Form::Whole(bytes) => [bytes, &[], &[]],
            Form::Parted { own, common } => {
                let (before, behind) = common.bytes.split_at(common.at.into());
                [before, &own[..common.own.into()], behind]
            }
        }
    }

    /// Their bytes.
    pub fn bytes(&self) -> Cow<'_, [u8]> {
        match &self.0 {
            Form::Whole(bytes) => Cow::Borrowed(bytes),
            Form::Parted { .. } => Cow::Owned(self.parts().concat()),
        }
    }

    /// Bytes that they take in memory beside themselves, but for the common part if others have it too.
    pub fn beside(&self) -> usize {
        match &self.0 {
            Form::Whole(bytes) => bytes.len(),
            // Whoever makes one, or keeps it for others, has it for a moment too.
            Form::Parted { common, .. } if Arc::strong_count(common) > 8 => 0,
            Form::Parted { common, .. } => size_of::<Common>() + common.len(),
        }
    }
}

impl PartialEq for Attributes {
    fn eq(&self, other: &Self) -> bool {
        self.bytes() == other.bytes()
    }
}

impl Eq for Attributes {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;
    use crate::wire::pb::device as pb;

    fn parted(bytes: &[u8]) -> Attributes {
        let parts = Parts::of(bytes);
        let common = Arc::new(parts.to_common());
        parts.with(common)
    }

    fn said(utdid: &str) -> Vec<u8> {
        let vendor =
            pb::VendorChannel { vendor: "vivo".into(), token: "t".repeat(200), ..Default::default() };
        let said = pb::Attributes {
            device_type: pb::DeviceType::Android.into(),
            package: "org.example.app".repeat(10),
            model: "M1".into(),
            utdid: utdid.into(),
            vendor: Some(vendor),
            notification_permission: pb::NotificationPermission::Granted.into(),
            ..Default::default()
        };
        said.encode_to_vec()
    }

    #[test]
    fn devices_that_differ_in_their_utdid_have_the_rest_in_common() {
        let [one, other] = ["utdid-0000000000000001", "utdid-0000000000000002"].map(said);
        let (first, second) = (Parts::of(&one), Parts::of(&other));
        let common = Arc::new(first.to_common());
        assert!(first.is_with(&common) && second.is_with(&common));
        assert_eq!(common.len(), one.len() - 22);
        let attributes = [first.with(common.clone()), second.with(common.clone())];
        assert_eq!(attributes.clone().map(|all| all.bytes().into_owned()), [one.clone(), other]);
        assert_eq!(attributes[0], Attributes::whole(one.into()));
        assert_ne!(attributes[0], attributes[1]);
        let longer = said("utdid-00000000000000003");
        assert!(!Parts::of(&longer).is_with(&common), "its length is common");
        assert_eq!(size_of::<Attributes>(), 32);
    }

    #[test]
    fn where_it_is_missing_or_long_all_is_common() {
        for all in
            [said(""), said(&"u".repeat(OWN_BYTES + 1)), Vec::new(), b"attributes".to_vec(), vec![7; 4_000]]
        {
            let parts = Parts::of(&all);
            assert_eq!((parts.common().concat(), parts.to_common().own), (all.clone(), 0));
            assert_eq!(parted(&all), Attributes::whole(all.into()));
        }
        assert_eq!(Parts::of(&said(&"u".repeat(OWN_BYTES))).to_common().own, 24);
    }

    proptest! {
        /// Whatever the bytes are, they come back.
        #[test]
        fn any_bytes_come_back_whole(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..60),
            at in 0usize..60,
            len in 0u8..30,
        ) {
            if at < bytes.len() {
                bytes.splice(at..at, [UTDID, len]);
            }
            let attributes = parted(&bytes);
            prop_assert_eq!(attributes.len(), bytes.len());
            prop_assert_eq!(&*attributes.bytes(), &bytes[..]);
        }
    }
}
