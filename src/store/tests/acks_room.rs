//! Acks on a full disk: they end entries, and so make room.

use super::common::{HOUR, SEGMENT, messages, opened};
use super::support::{Harness, Told, ack, batch, small};
use crate::push::{Event, Rejection};
use crate::store::disk::sim::SimDisk;
use crate::store::journal::GROUP_OVERHEAD;
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

/// What is for ends is kept whole, but while a segment is emptied: then half of it, and what the copies still take.
#[test]
fn while_a_full_disk_copies_acks_have_as_much_room_as_before() {
    for reserve in 1..=2 {
        let (_disk, mut harness) = opened(&options(reserve));
        fill_in_turn(&mut harness);
        let (ends, mut emptied) = (u64::from(reserve) * LARGE / 2, 0);
        let acked: Vec<u64> = (0..2).flat_map(|n| messages(&harness, n)).collect();
        for message in acked {
            harness.arrive((message % 4) as u32, message);
            harness.ack_stream(harness.head());
            // The active segment, and what isn't kept for copies.
            let mut begun: Option<(u32, u64)> = None;
            loop {
                let (room, segments) = (harness.engine.room(), harness.engine.segments());
                let copies = harness.engine.bytes_to_copy();
                let kept = copies.map_or(ends, |bytes| bytes + ends / 2);
                assert_eq!(harness.engine.room_beside_ends(), room.saturating_sub(kept));
                let active = segments.last().expect("one is active").id;
                let before = copies.map(|bytes| *begun.get_or_insert((active, room - bytes)));
                if let (Some(0), Some((first, before))) = (copies, before) {
                    // They took what was kept for them, and the ends of segments that they didn't fit into.
                    let old = segments.iter().filter(|segment| (first..active).contains(&segment.id));
                    let lost: u64 = old.map(|segment| segment.size - u64::from(segment.used)).sum();
                    let groups = before - room - lost;
                    assert!(groups <= 2 * GROUP_OVERHEAD as u64, "{groups} beside the copies");
                    emptied += 1;
                }
                if !harness.engine.maintain(harness.now).expect("the disk works") {
                    break;
                }
                harness.commit().expect("the disk works");
            }
        }
        assert!(emptied > 0, "none was");
    }
}

/// Others wait as long as that takes.
#[test]
fn an_ack_without_room_empties_one_segment_at_most() {
    let (_disk, mut harness) = opened(&options(1));
    fill_in_turn(&mut harness);
    for n in 0..4 {
        for message in messages(&harness, n) {
            harness.arrive(n, message);
        }
    }
    harness.ack_stream(harness.head());
    for _ in 0..2 {
        harness.checkpoint().expect("the disk works");
        let number = harness.head().0;
        assert!(tap(&mut harness, number));
    }
    let segments = harness.engine.segments().len();
    assert!(segments > 4);
    let mut gone = vec![0];
    for number in 1.. {
        assert!(tap(&mut harness, 10_000 + number));
        gone.push(harness.figure("segments_removed"));
        if gone.ends_with(&[3]) {
            break;
        }
    }
    assert!(gone.windows(2).all(|gone| gone[1] - gone[0] <= 1), "{gone:?}");
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
