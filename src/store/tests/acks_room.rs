//! Acks on a full disk: they end entries, and so make room.

use super::common::{HOUR, SEGMENT, messages, opened};
use super::support::{Harness, Told, ack, batch, small};
use crate::push::{Event, Rejection};
use crate::store::disk::sim::SimDisk;
use crate::store::options::StoreOptions;

/// Bytes of a segment that holds many batches, and more receipts.
const LARGE: u64 = 4 * SEGMENT;

fn options(reserve_segments: u32) -> StoreOptions {
    StoreOptions {
        segment_bytes: LARGE as u32,
        max_bytes: 7 * LARGE,
        reserve_segments,
        checkpoint_bytes: SEGMENT,
        unmatched_per_second: u32::MAX,
        ..small()
    }
}

/// Messages, each for one of four devices in turn, until one is rejected.
fn fill_in_turn(harness: &mut Harness<SimDisk>) {
    for n in 1..10_000 {
        let mut new = batch(&format!("b-{n}"), n, &[(n % 4) as u32], harness.now, HOUR);
        new.body = vec![7; 2_000].into();
        if let Err(why) = harness.deliver(new) {
            assert_eq!(why, Rejection::Unavailable);
            return;
        }
        harness.settle().expect("the disk works");
    }
    panic!("never full");
}

/// Says something that frees nothing; whether it was taken.
fn tap(harness: &mut Harness<SimDisk>, number: u64) -> bool {
    harness.acks(vec![ack(0, number, &[(999_999 + number, Event::Click)], harness.now)]);
    harness.commit().expect("the disk works");
    !harness.sink.take().iter().any(|told| matches!(told, Told::AckRefused(_)))
}

/// Device by device, so that each segment is half live for long and is copied. After each turn one slice, as on the store's thread.
#[test]
fn acks_are_taken_while_a_full_disk_copies() {
    for (reserve, used) in (1..=2).flat_map(|reserve| (0..6).map(move |step| (reserve, step * 1_024))) {
        let (_disk, mut harness) = opened(&options(reserve));
        fill_in_turn(&mut harness);
        harness.ack_stream(harness.head());
        harness.settle().expect("the disk works");
        let (room, mut number) = (harness.engine.room(), 1);
        while harness.engine.room() + used > room {
            assert!(tap(&mut harness, number));
            number += 1;
        }
        let mut refused = Vec::new();
        for n in 0..4 {
            for message in messages(&harness, n) {
                harness.acks(vec![ack(n, message, &[(message, Event::Arrive)], harness.now)]);
                harness.commit().expect("the disk works");
                if harness.sink.take().iter().any(|told| matches!(told, Told::AckRefused(_))) {
                    refused.push((n, message, harness.engine.room()));
                }
                harness.engine.maintain(harness.now).expect("the disk works");
                if message % 16 < 4 {
                    harness.ack_stream(harness.head());
                }
            }
        }
        let copied = harness.figure("copied_bytes");
        assert!(refused.is_empty(), "reserve {reserve}, {used} used, {copied} copied: {refused:?}");
        assert!(copied > LARGE, "{copied} copied: reserve {reserve}, {used} used");
        assert_eq!(harness.totals().pending, 0);
    }
}
