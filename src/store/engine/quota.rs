//! What one device may have pending, per app: a number of messages and their bytes. Beyond, either the newest is refused, or the oldest
//! end as `over_quota`.
//!
//! Normal ones go before high ones, and the oldest first: who sends with high priority wants exactly those to be there still. A newer
//! message that takes the place of older ones by its collapse key frees their share first.
//!
//! A list may be far beyond its quota, as that was lowered. A new message drives out a bounded number ([`limits::DISPLACED`]), so that what a batch ends
//! stays small: the list becomes shorter with each, and is never longer, or has more bytes, than before. Rejected: all of them at once, which were
//! up to 100,000 ends of each of a thousand devices in one commit.

use smallvec::SmallVec;

use crate::ids::MessageId;
use crate::limits;
use crate::push::{Failure, Refusal};
use crate::store::options::Quota;
use crate::store::part::Device;

/// A message on its way into lists.
#[derive(Clone, Copy, Debug)]
pub(super) struct Newcomer<'a> {
    pub(super) message: MessageId,
    pub(super) collapse_key: &'a str,
    pub(super) bytes: u64,
    pub(super) quota: Quota,
}

/// Positions in a device's list, and why what stands there goes.
pub(super) type Going = SmallVec<[(usize, Failure); 2]>;

/// What goes from a device's list for a new message, or that this is refused.
pub(super) fn make_way(device: &Device, new: &Newcomer<'_>) -> Result<Going, Refusal> {
    let mut going = Going::new();
    let pending = &device.pending;
    if !new.collapse_key.is_empty() {
        let older = pending.iter().enumerate().filter(|(_, entry)| {
            *entry.batch.collapse_key == *new.collapse_key && entry.batch.message != new.message
        });
        going.extend(older.map(|(at, _)| (at, Failure::Replaced)));
    }
    let quota = new.quota;
    let mut count = pending.len() - going.len();
    let bytes_at = |at: usize| u64::from(pending[at].batch.body_bytes);
    let before = if quota.max_bytes == u64::MAX { 0 } else { (0..pending.len()).map(bytes_at).sum::<u64>() };
    let freed = going.iter().map(|(at, _)| bytes_at(*at)).sum::<u64>();
    let mut bytes = before.saturating_sub(freed);
    let is_over = |count: usize, bytes: u64| {
        count >= quota.max_entries || bytes.saturating_add(new.bytes) > quota.max_bytes
    };
    if !is_over(count, bytes) {
        return Ok(going);
    }
    if !quota.drop_oldest || is_over(0, 0) {
        return Err(Refusal::OverQuota);
    }
    let (first_normal, mut dropped) = (device.first_normal(), 0);
    for at in (first_normal..pending.len()).chain(0..first_normal) {
        if going.iter().any(|(gone, _)| *gone == at) {
            continue;
        }
        going.push((at, Failure::OverQuota));
        count -= 1;
        bytes = bytes.saturating_sub(bytes_at(at));
        dropped += 1;
        let is_no_more = quota.max_bytes == u64::MAX || bytes + new.bytes <= before;
        if !is_over(count, bytes) || dropped >= limits::DISPLACED && is_no_more {
            break;
        }
    }
    Ok(going)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::ids::Seq;
    use crate::push::Priority;
    use crate::store::batch::Batch;
    use crate::store::part::{AppId, Described, Entry};

    /// A device on which these wait, in this order: the key and the bytes of each; in capitals the key of one with high priority.
    fn device(pending: &[(&str, u32)]) -> Device {
        let attributes = (0, 0);
        let mut device =
            Device::new(&Described { number: 1, app: AppId(1), push_on: true, attributes, last_active: 0 });
        for (n, (key, bytes)) in (1..).zip(pending) {
            let mut batch = Batch::of_test(Seq(n), MessageId(n), 1);
            let is_high = key.chars().any(char::is_uppercase);
            batch.priority = if is_high { Priority::High } else { Priority::Normal };
            (batch.collapse_key, batch.body_bytes) = ((*key).into(), *bytes);
            device.push(Entry::new(Arc::new(batch), 0, 0));
        }
        device
    }

    const NONE: Quota = Quota { max_entries: usize::MAX, max_bytes: u64::MAX, drop_oldest: false };

    /// What goes for a message of a hundred bytes; those that are replaced end in `'`. `None`: it is refused.
    fn goes(pending: &[(&str, u32)], collapse_key: &str, message: u64, quota: Quota) -> Option<Vec<String>> {
        let new = Newcomer { message: MessageId(message), collapse_key, bytes: 100, quota };
        let going = make_way(&device(pending), &new).ok()?;
        let name = |(at, why)| format!("{at}{}", if why == Failure::Replaced { "'" } else { "" });
        Some(going.into_iter().map(name).collect())
    }

    #[test]
    fn only_older_messages_with_the_same_key_are_replaced() {
        let pending = [("", 1), ("a", 1), ("b", 1), ("a", 1)];
        assert_eq!(goes(&pending, "", 9, NONE).expect("taken"), [""; 0]);
        assert_eq!(goes(&pending, "a", 9, NONE).expect("taken"), ["1'", "3'"]);
        assert_eq!(goes(&pending, "a", 4, NONE).expect("taken"), ["1'"], "another batch of the same message");
        assert_eq!(goes(&pending, "c", 9, NONE).expect("taken"), [""; 0]);
    }

    #[test]
    fn what_is_replaced_frees_its_share_of_the_number_first() {
        let pending = [("a", 1), ("b", 1), ("a", 1), ("c", 1)];
        for (max_entries, expected) in
            [(3, vec!["0'", "2'"]), (2, vec!["0'", "2'", "1"]), (1, vec!["0'", "2'", "1", "3"])]
        {
            let quota = Quota { max_entries, drop_oldest: true, ..NONE };
            assert_eq!(goes(&pending, "a", 9, quota).expect("taken"), expected, "{max_entries}");
            let newest = Quota { max_entries, ..NONE };
            assert_eq!(goes(&pending, "a", 9, newest).is_some(), max_entries == 3);
        }
        let nothing = Quota { max_entries: 0, drop_oldest: true, ..NONE };
        assert_eq!(goes(&pending, "a", 9, nothing), None, "it never fits");
    }

    #[test]
    fn what_is_replaced_frees_its_share_of_the_bytes_first() {
        let pending = [("a", 300), ("b", 200), ("a", 50), ("c", 400)];
        // Beside what is replaced 600 wait.
        for (max_bytes, expected) in [
            (700, vec!["0'", "2'"]),
            (699, vec!["0'", "2'", "1"]),
            (500, vec!["0'", "2'", "1"]),
            (499, vec!["0'", "2'", "1", "3"]),
            (100, vec!["0'", "2'", "1", "3"]),
        ] {
            let quota = Quota { max_bytes, drop_oldest: true, ..NONE };
            assert_eq!(goes(&pending, "a", 9, quota).expect("taken"), expected, "{max_bytes}");
            assert_eq!(
                goes(&pending, "a", 9, Quota { drop_oldest: false, ..quota }).is_some(),
                max_bytes == 700
            );
        }
        assert_eq!(goes(&pending, "a", 9, Quota { max_bytes: 99, drop_oldest: true, ..NONE }), None);
        assert_eq!(goes(&[], "", 9, Quota { max_bytes: 100, ..NONE }).expect("taken"), [""; 0]);
    }

    /// Of the number or of the bytes, whichever is short.
    #[test]
    fn the_oldest_normal_ones_go_and_then_the_oldest_of_high_priority() {
        let pending = [("", 100), ("A", 100), ("", 100), ("B", 100)];
        // In the list: A, B, and the two normal ones.
        for (left, expected) in
            [(3, vec!["2"]), (2, vec!["2", "3"]), (1, vec!["2", "3", "0"]), (0, vec!["2", "3", "0", "1"])]
        {
            let number = Quota { max_entries: left + 1, drop_oldest: true, ..NONE };
            assert_eq!(goes(&pending, "", 9, number).expect("taken"), expected);
            let bytes = Quota { max_bytes: 100 * (left as u64 + 1), drop_oldest: true, ..NONE };
            assert_eq!(goes(&pending, "", 9, bytes).expect("taken"), expected);
        }
        assert_eq!(
            goes(&pending, "A", 9, Quota { max_entries: 3, drop_oldest: true, ..NONE }).expect("taken"),
            ["0'", "2"]
        );
    }

    /// Messages in a list: a key of few, bytes, and whether of high priority.
    fn lists() -> impl Strategy<Value = Vec<(String, u32)>> {
        let key = prop::sample::select(vec!["", "", "a", "b", "A"]).prop_map(str::to_owned);
        let one = (key, prop_oneof![20..200u32, Just(8_000)]);
        prop::collection::vec(one, 0..120)
    }

    proptest! {
        /// Whatever a list holds, perhaps from a time with higher quotas.
        #[test]
        fn a_list_never_becomes_longer_than_its_quota_or_than_it_was(
            pending in lists(),
            collapse_key in prop::sample::select(vec!["", "a", "c"]),
            bytes in prop_oneof![20..200u64, Just(8_000)],
            max_entries in 0..60usize,
            max_bytes in prop_oneof![0..20_000u64, Just(u64::MAX)],
        ) {
            let named: Vec<(&str, u32)> = pending.iter().map(|(key, bytes)| (&**key, *bytes)).collect();
            let device = device(&named);
            let quota = Quota { max_entries, max_bytes, drop_oldest: true };
            let new = Newcomer { message: MessageId(999), collapse_key, bytes, quota };
            let Ok(going) = make_way(&device, &new) else {
                prop_assert!(max_entries == 0 || bytes > max_bytes, "else there is always a way");
                return Ok(());
            };
            let size = |at: usize| u64::from(device.pending[at].batch.body_bytes);
            let gone: BTreeSet<usize> = going.iter().map(|(at, _)| *at).collect();
            prop_assert_eq!(gone.len(), going.len(), "each once");
            let dropped: Vec<usize> =
                going.iter().filter(|(_, why)| *why == Failure::OverQuota).map(|(at, _)| *at).collect();
            let before = (device.pending.len(), (0..device.pending.len()).map(size).sum::<u64>());
            let freed = gone.iter().map(|at| size(*at)).sum::<u64>();
            let after = (before.0 - gone.len() + 1, before.1 - freed + bytes);
            prop_assert!(after.0 <= before.0.max(max_entries) && after.1 <= before.1.max(max_bytes), "{after:?}");
            let is_within = after.0 <= max_entries && after.1 <= max_bytes;
            prop_assert!(is_within || dropped.len() >= limits::DISPLACED, "no fewer than that are too few: {after:?}");
            // One fewer would have been too few.
            if let Some((last, _)) = dropped.split_last() {
                let less = (after.0 + 1, after.1 + size(*last));
                let was_within = less.0 <= max_entries && less.1 <= max_bytes;
                let was_enough = dropped.len() > limits::DISPLACED && (max_bytes == u64::MAX || less.1 <= before.1);
                prop_assert!(!was_within && !was_enough, "{less:?}");
            }
            // Normal ones before high ones, and the oldest first.
            let first_normal = device.first_normal();
            let order = (first_normal..device.pending.len()).chain(0..first_normal);
            let oldest = order.filter(|at| dropped.contains(at) || !gone.contains(at));
            prop_assert_eq!(&dropped, &oldest.take(dropped.len()).collect::<Vec<_>>());
        }
    }
}
