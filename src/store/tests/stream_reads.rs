//! One read of a stream: where it ends, and what it says of what lies on its way.

use super::plan::START;
use super::stream_damage::{flip, places};
use super::streams::{event, opened, other_event, reopened, said, two};
use super::support::{Harness, ack, small};

use crate::ids::Seq;
use crate::push::{Event, StreamEvent};
use crate::store::StreamRead;
use crate::store::disk::sim::SimDisk;
use crate::store::record;

fn read(harness: &Harness<SimDisk>, after: Seq, max_events: usize, max_bytes: usize) -> StreamRead {
    harness.engine.read_stream("main", after, max_events, max_bytes).expect("readable")
}

#[test]
fn a_read_ends_with_so_many_events_or_bytes_and_goes_on_there() {
    let (_disk, mut harness) = opened(&small());
    (1..=6).for_each(|message| event(&mut harness, message));
    let all = read(&harness, Seq(0), usize::MAX, usize::MAX);
    assert_eq!((all.cursor, said(&all.events)), (harness.head(), vec![1, 2, 3, 4, 5, 6]));
    for (max_events, max_bytes, events) in [(2, usize::MAX, 2), (usize::MAX, 1, 1), (1, 1, 1)] {
        let (mut after, mut got) = (Seq(0), Vec::new());
        while after < harness.head() {
            let some = read(&harness, after, max_events, max_bytes);
            assert!(some.cursor > after && some.events.len() <= events, "{some:?}");
            (after, got) = (some.cursor, [got, some.events].concat());
        }
        assert_eq!(got, all.events, "{max_events} events, {max_bytes} bytes");
    }
    // Three events, however many bytes those of the records before have.
    let bytes: usize = 3 * 60;
    let some = read(&harness, Seq(0), usize::MAX, bytes);
    assert!((2..6).contains(&some.events.len()), "about as many bytes as were asked for: {some:?}");
}

/// Where a stream has few events, a read must not take as long as the whole journal is.
#[test]
fn a_read_that_finds_nothing_ends_early_and_goes_on_there() {
    let (_disk, mut harness) = opened(&two("main", "second"));
    harness.ack_stream(harness.head());
    (1..=20).for_each(|message| other_event(&mut harness, message));
    event(&mut harness, 21);
    let begin = harness.engine.stream_bounds("main").expect("known").cursor;
    let (mut after, mut reads, mut got) = (begin, 0, Vec::new());
    while after < harness.head() {
        let some = read(&harness, after, usize::MAX, 100);
        assert!(some.cursor > after, "{some:?}");
        (after, reads, got) = (some.cursor, reads + 1, [got, some.events].concat());
    }
    assert_eq!(said(&got), [21]);
    assert!((2..20).contains(&reads), "{reads} reads for some thousand bytes, of which each looks at 1,600");
}

#[test]
fn what_can_not_be_read_at_the_very_end_is_told() {
    let (disk, mut harness) = opened(&small());
    (1..=3).for_each(|message| event(&mut harness, message));
    let (last, place) = *places(&harness, record::RECEIPT).last().expect("one");
    assert_eq!(last, harness.head());
    flip(&disk, place);
    for after in 0..last.0 {
        let some = read(&harness, Seq(after), usize::MAX, usize::MAX);
        let Some((at, StreamEvent::Gap(gap))) = some.events.last() else { panic!("no gap: {some:?}") };
        assert_eq!((some.cursor, *at, gap.first, gap.last), (last, last, last, last), "after {after}");
    }
    assert!(read(&harness, last, usize::MAX, usize::MAX).events.is_empty());
}

#[test]
fn a_reader_that_comes_back_reads_what_lies_before_a_gap_too() {
    let options = two("main", "second");
    let (disk, mut harness) = opened(&options);
    event(&mut harness, 1);
    // The record of the cursor too: what goes into the gap begins with an event.
    (0..2).for_each(|_| harness.ack_stream(harness.head()));
    harness.acks(vec![ack(0, 9, &[(1, Event::Click)], START)]);
    harness.commit().expect("the disk works");
    event(&mut harness, 2);
    harness.retire("main", true).expect("dropped");
    event(&mut harness, 4);
    for again in 0..2 {
        assert_eq!(said(&harness.stream(Seq(0))), [1, -2, 4], "{again}");
        harness = reopened(&disk, harness, &options);
    }
}

#[test]
fn since_when_something_waits_for_its_reader_is_told() {
    let (_disk, mut harness) = opened(&small());
    harness.ack_stream(harness.head());
    let since = |harness: &mut Harness<SimDisk>| {
        harness.settle().expect("the disk works");
        harness.stream_state("main").expect("known").unread_since
    };
    assert_eq!(since(&mut harness), None);
    event(&mut harness, 1);
    assert_eq!(since(&mut harness), Some(START));
    harness.now += 60_000;
    event(&mut harness, 2);
    assert_eq!(since(&mut harness), Some(START), "it has waited for a minute");
    harness.ack_stream(harness.head());
    assert_eq!(since(&mut harness), None);
}
