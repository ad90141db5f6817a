//! Gaps at their bounds: of one record or of none, behind which nothing can be read, and where another stream is in the way.

use std::sync::Arc;

use super::common::{SEGMENT, again};
use super::lost::{fill_finely, without_reserve};
use super::plan::START;
use super::stream_damage::{flip, places};
use super::streams::{device_records, event, opened, other_event, reopened, two};
use super::support::{Harness, ack, small};
use crate::ids::Seq;
use crate::push::{Event, ReceiptGap, StreamEvent};
use crate::store::disk::sim::SimDisk;
use crate::store::options::StoreOptions;
use crate::store::{Command, RetireError, record};
use tokio::sync::oneshot;

fn gaps(harness: &Harness<SimDisk>, stream: &str) -> Vec<ReceiptGap> {
    harness.stream_state(stream).expect("known").gaps
}

/// The record of the cursor too.
fn read_all(harness: &mut Harness<SimDisk>) -> Seq {
    (0..2).for_each(|_| harness.ack_stream(harness.head()));
    harness.head()
}

#[test]
fn one_record_is_dropped_as_many_are_and_none_is_no_gap() {
    let (disk, mut harness) = opened(&small());
    event(&mut harness, 1);
    let read = read_all(&mut harness);
    assert!(harness.retire("main", true).is_ok_and(|done| !done.ended && done.sequence == read));
    assert_eq!((gaps(&harness, "main"), harness.head()), (vec![], read));
    assert_eq!(harness.engine.stream_bounds("main").expect("known").cursor, read);
    harness.acks(vec![ack(0, 1, &[(1, Event::Click)], START)]);
    harness.commit().expect("the disk works");
    harness.retire("main", true).expect("dropped");
    for _ in 0..2 {
        let [gap] = &gaps(&harness, "main")[..] else { panic!("one gap") };
        let one = Seq(read.0 + 1);
        assert_eq!((gap.first, gap.last, gap.by_event.get("click")), (one, one, Some(&1)));
        harness = again(&disk, harness, &small());
    }
}

/// At the journal's end, or with something behind it that isn't part of the gap.
#[test]
fn that_the_last_record_of_a_gap_cannot_be_read_is_said() {
    for behind in [false, true] {
        let (disk, mut harness) = opened(&small());
        (1..=2).for_each(|message| event(&mut harness, message));
        let (last, place) = *places(&harness, record::RECEIPT).last().expect("two");
        assert_eq!(last, harness.head());
        flip(&disk, place);
        let (reply, _answer) = oneshot::channel();
        let stream = "main".into();
        harness.apply(Command::RetireStream { stream, force: true, reply }).expect("the disk works");
        if behind {
            assert!(super::brim::filler(&mut harness));
        }
        harness.settle().expect("the disk works");
        let [gap] = &gaps(&harness, "main")[..] else { panic!("one gap") };
        let counted = |word: &str| gap.by_event.get(word).copied();
        assert_eq!(
            (gap.last, counted("arrive"), counted("unreadable")),
            (last, Some(1), Some(1)),
            "{behind}"
        );
    }
}

/// The first one of the configuration has something unread, too, but not too much.
#[test]
fn a_stream_over_its_bound_makes_a_gap_whatever_is_unread_of_another() {
    let streams = two("second", "main");
    let (disk, mut harness) = opened(&streams);
    event(&mut harness, 1);
    device_records(&mut harness, 5 * SEGMENT as usize);
    harness.ack_stream_of("main", harness.head());
    other_event(&mut harness, 2);
    harness = reopened(&disk, harness, &StoreOptions { stream_hard_bytes: 3 * SEGMENT, ..streams });
    assert!(["main", "second"].map(|name| harness.stream_state(name).expect("known").unread) == [true; 2]);
    harness.settle().expect("the disk works");
    assert_eq!((gaps(&harness, "main").len(), gaps(&harness, "second").len()), (0, 1));
}

/// However little room there is.
#[test]
fn a_stream_ends_or_there_is_no_room_for_saying_so() {
    let streams = |second: &str| {
        let StoreOptions { streams, app_streams, .. } = two("main", second);
        StoreOptions { streams, app_streams, ..without_reserve(2) }
    };
    let (disk, harness) = opened(&streams("second"));
    let one = streams("main");
    let mut harness = reopened(&disk, harness, &one);
    harness.settle().expect("the disk works");
    let (mut ended, mut full) = (0, 0);
    for day in 1.. {
        let is_last = !fill_finely(&mut harness, day);
        if is_last || harness.engine.room() < 1_000 {
            let disk = Arc::new(disk.fork());
            disk.kill();
            disk.set_capacity(Some(disk.used()));
            let mut harness = Harness::open(&disk, &one, START);
            match harness.retire("second", false) {
                Ok(_) => ended += 1,
                Err(why) => {
                    assert_eq!(why, RetireError::Full);
                    full += 1;
                }
            }
        }
        if is_last {
            break;
        }
    }
    assert!(ended > 0 && full > 0, "{ended} {full}");
}

/// The records that said whose events they were are lost: rather than nobody's they are those of the stream that has the app now.
#[test]
fn events_whose_stream_nothing_tells_any_more_are_read_from_the_one_that_has_their_app() {
    let (disk, mut harness) = opened(&two("main", "second"));
    let routes = places(&harness, record::ROUTE);
    event(&mut harness, 1);
    let options = two("second", "second");
    harness = reopened(&disk, harness, &options);
    event(&mut harness, 2);
    for (_, place) in &routes {
        flip(&disk, *place);
    }
    for _ in 0..2 {
        harness = reopened(&disk, harness, &options);
        harness.settle().expect("the disk works");
        let told = harness.try_stream_of("second", Seq(0)).expect("readable").into_iter();
        let arrived: Vec<u64> = told
            .filter_map(|(_, event)| match event {
                StreamEvent::Receipt(receipt) => Some(receipt.message.0),
                _ => None,
            })
            .collect();
        assert_eq!(arrived, [1, 2]);
    }
}
