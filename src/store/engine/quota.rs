//! What one device may have pending, per app: a number of messages and their bytes. Beyond, either the newest is refused, or the oldest
//! end as `over_quota`.
//!
//! Normal ones go before high ones, and the oldest first: who sends with high priority wants exactly those to be there still. A newer
//! message that takes the place of older ones by its collapse key frees their share first.

use smallvec::SmallVec;

use crate::ids::MessageId;
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
    let mut bytes = if quota.max_bytes == u64::MAX {
        0
    } else {
        (0..pending.len()).map(bytes_at).sum::<u64>() - going.iter().map(|(at, _)| bytes_at(*at)).sum::<u64>()
    };
    let is_over = |count: usize, bytes: u64| {
        count >= quota.max_entries || bytes.saturating_add(new.bytes) > quota.max_bytes
    };
    if !is_over(count, bytes) {
        return Ok(going);
    }
    if !quota.drop_oldest || is_over(0, 0) {
        return Err(Refusal::OverQuota);
    }
    let first_normal = device.first_normal();
    for at in (first_normal..pending.len()).chain(0..first_normal) {
        if going.iter().any(|(gone, _)| *gone == at) {
            continue;
        }
        going.push((at, Failure::OverQuota));
        count -= 1;
        bytes = bytes.saturating_sub(bytes_at(at));
        if !is_over(count, bytes) {
            break;
        }
    }
    Ok(going)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

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
}
