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
