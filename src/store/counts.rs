//! How counts stand in rows.

use super::codec::{Malformed, Take, put_varint};
use crate::push::Counts;

pub(super) fn put(out: &mut Vec<u8>, counts: &Counts) {
    let numbers = [counts.batches, counts.targets, counts.accepted, counts.arrived, counts.pending];
    let receipts = [counts.sent, counts.clicked, counts.cleaned, counts.late];
    for number in numbers.iter().chain(&receipts).chain(&counts.refused).chain(&counts.failed) {
        put_varint(out, *number);
    }
}

pub(super) fn take(take: &mut Take<'_>) -> Result<Counts, Malformed> {
    let mut counts = Counts::default();
    {
        let Counts { batches, targets, accepted, arrived, pending, sent, clicked, cleaned, late, .. } =
            &mut counts;
        for number in [batches, targets, accepted, arrived, pending, sent, clicked, cleaned, late] {
            *number = take.varint()?;
        }
    }
    for number in counts.refused.iter_mut().chain(&mut counts.failed) {
        *number = take.varint()?;
    }
    Ok(counts)
}
