//! What ends at its time although it was written: by a receipt that says so, or, where the disk has no room for that, together with the rest.

use std::sync::Arc;

use super::plan::START;
use super::support::{Harness, ack, batch, small};
use crate::ids::Seq;
use crate::push::{Event, Failure, Rejection, StreamEvent};
use crate::store::disk::sim::SimDisk;
use crate::store::options::StoreOptions;
use crate::store::tests::support::Told;

const MINUTE: u64 = 60_000;
const HOUR: u64 = 60 * MINUTE;

fn opened(options: &StoreOptions, devices: u32) -> (Arc<SimDisk>, Harness<SimDisk>) {
    let disk = Arc::new(SimDisk::new());
    let mut harness = Harness::open(&disk, options, START);
    for n in 0..devices {
        harness.see(n);
    }
    harness.commit().expect("the disk works");
    (disk, harness)
}

/// One batch for all of them that each has had written to its connection, and that ends in a minute.
fn written_to_all(harness: &mut Harness<SimDisk>, devices: u32) {
    let targets: Vec<u32> = (0..devices).collect();
    harness.deliver(batch("written", 1, &targets, harness.now, MINUTE)).expect("accepted");
    for n in targets {
        assert_eq!(harness.pulled(n), [(1, false)]);
    }
}

/// Nothing is taken any more, and no ack that frees nothing.
fn fill(disk: &Arc<SimDisk>, harness: &mut Harness<SimDisk>) {
    disk.set_capacity(Some(disk.used()));
    for n in 100.. {
        let mut new = batch(&format!("b-{n}"), n, &[0], harness.now, 70 * HOUR);
        new.body = vec![7; 3_000].into();
        if let Err(why) = harness.deliver(new) {
            assert_eq!(why, Rejection::Unavailable);
            break;
        }
    }
    harness.sink.take();
    for number in 1.. {
        harness.acks(vec![ack(0, number, &[(999_999 + number, Event::Click)], harness.now)]);
        harness.commit().expect("the disk works");
        if !harness.sink.take().iter().any(|told| matches!(told, Told::Confirmed(_))) {
            break;
        }
    }
}

/// How many ended as expired by receipts of their own that say when they were written, and how many in records of many.
fn expired(harness: &Harness<SimDisk>) -> (usize, u32) {
    let (mut alone, mut together) = (0, 0);
    for (_, event) in harness.stream(Seq(0)) {
        match event {
            StreamEvent::Receipt(receipt) if receipt.outcome == Some(Err(Failure::Expired)) => {
                assert!(receipt.sent_at > 0);
                alone += 1;
            }
            StreamEvent::Mass(mass) if mass.reason == Failure::Expired => together += mass.count,
            _ => {}
        }
    }
    (alone, together)
}

#[test]
fn what_was_written_to_very_many_ends_by_receipts_a_slice_at_a_time() {
    const DEVICES: u32 = 1_030;
    const UNWRITTEN: u32 = 500;
    let options = StoreOptions { segment_bytes: 1 << 20, unmatched_per_second: u32::MAX, ..small() };
    let (_disk, mut harness) = opened(&options, DEVICES);
    written_to_all(&mut harness, DEVICES);
    // Ends first, and is half of what one slice looks at.
    let targets: Vec<u32> = (0..UNWRITTEN).collect();
    harness.deliver(batch("unwritten", 2, &targets, harness.now, MINUTE - 1)).expect("accepted");
    harness.now += MINUTE;
    assert!(harness.engine.maintain(harness.now).expect("the disk works"));
    harness.commit().expect("the disk works");
    // As expired, and as sent: only a receipt of its own says that.
    let ended = |harness: &mut Harness<SimDisk>| {
        let totals = harness.totals();
        (totals.failed[Failure::Expired as usize - 1], totals.sent, totals.pending)
    };
    let (all, unwritten) = (u64::from(DEVICES), u64::from(UNWRITTEN));
    assert_eq!(ended(&mut harness), (unwritten + 1_024, 1_024, all - 1_024), "a slice");
    harness.settle().expect("the disk works");
    assert_eq!(ended(&mut harness), (unwritten + all, all, 0));
}

#[test]
fn without_room_for_a_receipt_each_what_was_written_ends_together() {
    const DEVICES: u32 = 200;
    // Half of it stays for ends: less than the receipts would take, and more than a record of them all.
    let options = StoreOptions { unmatched_per_second: u32::MAX, reserve_segments: 4, ..small() };
    let (disk, mut harness) = opened(&options, DEVICES);
    written_to_all(&mut harness, DEVICES);
    fill(&disk, &mut harness);
    harness.now += MINUTE;
    harness.settle().expect("the disk works");
    assert_eq!(expired(&harness), (0, DEVICES));
    assert!(harness.totals().identity_holds());
}

#[test]
fn ends_wait_while_there_is_no_room_for_any() {
    const MESSAGES: u64 = 200;
    let options = StoreOptions { unmatched_per_second: u32::MAX, ..small() };
    let (disk, mut harness) = opened(&options, 2);
    for n in 1..=MESSAGES {
        harness.deliver(batch(&format!("a-{n}"), n, &[1], harness.now, MINUTE)).expect("accepted");
    }
    fill(&disk, &mut harness);
    harness.now += MINUTE;
    harness.settle().expect("the disk works");
    let (alone, together) = expired(&harness);
    assert!(alone == 0 && u64::from(together) < MESSAGES, "{together} of {MESSAGES}");
    assert_eq!(harness.totals().failed[Failure::Expired as usize - 1], u64::from(together));
    disk.set_capacity(None);
    harness.now += 1_000;
    harness.settle().expect("the disk works");
    assert_eq!(expired(&harness), (0, MESSAGES as u32));
    assert!(harness.totals().identity_holds());
}
