//! Damage in what a stream's reader has still to read: a gap says so, wherever it lies and however often it is read.

use std::ops::ControlFlow;

use super::plan::START;
use super::streams::{device_records, event, hard, opened, reopened};
use super::support::{Harness, app, batch, small};

use crate::ids::Seq;
use crate::push::{ReceiptGap, StreamEvent};
use crate::store::disk::sim::SimDisk;
use crate::store::journal::{Place, segment_name};
use crate::store::options::StoreOptions;
use crate::store::record;

const HOUR: u64 = 3_600_000;

/// Where the records of a kind are, oldest first.
pub(super) fn places(harness: &Harness<SimDisk>, kind: u8) -> Vec<(Seq, Place)> {
    let mut places = Vec::new();
    let reader = &harness.engine.shared().reader;
    let oldest = Seq(reader.oldest().0 - 1);
    let scanned = reader.scan(oldest, &mut None, &mut |record| {
        if record.kind == kind {
            places.push((record.seq, record.place));
        }
        ControlFlow::Continue(())
    });
    scanned.expect("readable");
    places
}

pub(super) fn flip(disk: &SimDisk, place: Place) {
    disk.flip(&segment_name(place.segment), u64::from(place.offset) + 20, 1).expect("there");
}

fn gaps(events: &[(Seq, StreamEvent)]) -> Vec<ReceiptGap> {
    let gap = |(seq, event): &(Seq, StreamEvent)| match event {
        StreamEvent::Gap(gap) => {
            assert!(*seq >= gap.last);
            Some((**gap).clone())
        }
        _ => None,
    };
    assert!(events.is_sorted_by_key(|(seq, _)| *seq));
    events.iter().filter_map(gap).collect()
}

fn unreadable(first: Seq, last: Seq) -> ReceiptGap {
    let mut gap = ReceiptGap::new(first, last);
    gap.count("unreadable", 1);
    gap
}

fn receipts(events: &[(Seq, StreamEvent)]) -> Vec<u64> {
    let receipt = |(_, event): &(Seq, StreamEvent)| match event {
        StreamEvent::Receipt(receipt) => Some(receipt.message.0),
        _ => None,
    };
    events.iter().filter_map(receipt).collect()
}

#[test]
fn what_cannot_be_read_of_a_stream_is_a_gap_wherever_its_reader_begins() {
    let (disk, mut harness) = opened(&small());
    for message in 1..=6 {
        event(&mut harness, message);
    }
    let arrived = places(&harness, record::RECEIPT);
    let (third, fourth) = (arrived[2], arrived[3]);
    flip(&disk, third.1);
    for again in 0..3 {
        let all = harness.stream(Seq(0));
        assert_eq!((receipts(&all), gaps(&all)), (vec![1, 2, 4, 5, 6], vec![unreadable(third.0, third.0)]));
        for after in 0..harness.head().0 {
            let some = harness.stream(Seq(after));
            assert_eq!(gaps(&some).is_empty(), after >= third.0.0, "{again}: after {after}");
            assert!(some.iter().all(|event| all.contains(event)), "{again}: after {after}: {some:?}");
        }
        harness = reopened(&disk, harness, &small());
    }
    // Damage that follows at once is of the same gap. A batch of the next message lies between.
    flip(&disk, fourth.1);
    flip(&disk, places(&harness, record::BATCH)[3].1);
    let all = harness.stream(Seq(0));
    assert_eq!((receipts(&all), gaps(&all)), (vec![1, 2, 5, 6], vec![unreadable(third.0, fourth.0)]));
    // From its middle on, what is left of it.
    assert_eq!(gaps(&harness.stream(third.0)), [unreadable(Seq(third.0.0 + 1), fourth.0)]);
}

/// Nothing comes behind it, so that nobody but the start knows that there was something.
#[test]
fn an_event_that_was_the_last_one_and_cannot_be_read_is_kept_for_its_reader() {
    let options = hard();
    let (disk, mut harness) = opened(&options);
    event(&mut harness, 1);
    harness.ack_stream(harness.head());
    let cursor = harness.engine.stream_bounds("main").expect("known").cursor;
    event(&mut harness, 2);
    // In the tables, so that nobody takes it for a torn write.
    harness.now += 10_000;
    harness.settle().expect("the disk works");
    let last = *places(&harness, record::RECEIPT).last().expect("one");
    flip(&disk, last.1);
    harness = reopened(&disk, harness, &options);
    // The journal doesn't go on without it, until the hard bound.
    for _ in 0..2 {
        device_records(&mut harness, 2_000);
        harness.checkpoint().expect("the disk works");
        harness.settle().expect("the disk works");
    }
    for again in 0..2 {
        let state = harness.stream_state("main").expect("known");
        assert!(state.unread, "{again}: {state:?}");
        // In its place, and, said once, by the start.
        let gap = unreadable(last.0, last.0);
        assert_eq!(gaps(&harness.stream(cursor)), [gap.clone(), gap], "{again}");
        harness = reopened(&disk, harness, &options);
    }
}

#[test]
fn a_gap_at_the_hard_bound_counts_what_cannot_be_read() {
    let (disk, mut harness) = opened(&hard());
    for message in 1..=4 {
        event(&mut harness, message);
    }
    flip(&disk, places(&harness, record::RECEIPT)[1].1);
    device_records(&mut harness, 7 * 16 * 1024);
    let gap = harness.stream_state("main").expect("known").gaps.remove(0);
    let of = |word| gap.by_event.get(word).copied();
    assert_eq!((of("arrive"), of("unreadable")), (Some(3), Some(1)), "{gap:?}");
}

/// Neither a checkpoint nor the tables have it, and its router is past its sequence: nobody else could say that it is gone.
#[test]
fn a_batch_that_is_lost_without_a_trace_is_told_once_and_a_repeat_is_accepted_as_new() {
    let (disk, mut harness) = opened(&small());
    let [_, lost, _] = [1, 2, 3].map(|message| {
        let new = batch(&format!("b{message}"), message, &[0], START, HOUR);
        harness.deliver(new).expect("accepted")
    });
    harness.ack_stream(harness.head());
    let past = harness.head();
    flip(&disk, places(&harness, record::BATCH)[1].1);
    for again in 0..3 {
        harness = reopened(&disk, harness, &small());
        harness.settle().expect("the disk works");
        assert_eq!(gaps(&harness.stream(past)), [unreadable(lost.seq, lost.seq)], "{again}");
        if again == 0 {
            assert_eq!(harness.pulled(0), [(1, true), (3, true)]);
            assert!(harness.stream_state("main").expect("known").unread);
            let repeated = harness.deliver(batch("b2", 2, &[0], START, HOUR)).expect("accepted");
            assert!(!repeated.repeated && repeated.accepted == 1 && repeated.seq > past, "{repeated:?}");
        }
        assert_eq!(harness.pulled(0).len(), 3, "{again}");
        let totals = harness.totals();
        assert!(totals.identity_holds() && totals.accepted == 3 && totals.pending == 3, "{totals:?}");
    }
}

/// The app's stream is the second one, which nobody knows of but the lost record.
#[test]
fn events_are_told_though_the_record_of_their_stream_or_of_its_apps_is_lost() {
    let app_streams = [(app(), "second".into())].into();
    let options = StoreOptions { streams: vec!["main".into(), "second".into()], app_streams, ..small() };
    for (kind, which) in [(record::STREAM, 1), (record::ROUTE, 0), (record::ROUTE, 1)] {
        let (disk, mut harness) = opened(&options);
        for message in 1..=3 {
            event(&mut harness, message);
        }
        // In the tables, so that nobody takes it for a torn write.
        harness.now += 10_000;
        harness.settle().expect("the disk works");
        flip(&disk, places(&harness, kind)[which].1);
        for again in 0..3 {
            harness = reopened(&disk, harness, &options);
            let told = |stream: &str| {
                let read = harness.engine.read_stream(stream, Seq(0), 1_000, usize::MAX).expect("readable");
                receipts(&read.events)
            };
            assert_eq!(told("second"), [1, 2, 3], "kind {kind}, record {which}, start {again}");
            assert_eq!(told("main"), [0; 0], "kind {kind}, record {which}, start {again}");
            if again == 1 {
                harness.checkpoint().expect("the disk works");
            }
        }
    }
}
