//! How a gap is made: which segments it takes, what it counts in several slices, and what its reader does meanwhile.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::common::{SEGMENT, again};
use super::plan::START;
use super::stream_damage::{flip, places};
use super::streams::{device_records, event, opened, other, other_device};
use super::support::{Harness, ack, app, of_messages, seen, session, small};
use crate::ids::Seq;
use crate::push::{Attributes, Event, ReceiptGap, StreamEvent};
use crate::store::disk::sim::SimDisk;
use crate::store::options::StoreOptions;
use crate::store::{Command, RetireError, Retired, record};

type Answer = oneshot::Receiver<Result<Retired, RetireError>>;

/// Everything stays in the journal, whatever of it is a gap.
fn kept(hard: u64) -> StoreOptions {
    StoreOptions { stream_hard_bytes: hard, ..small() }
}

fn gaps(harness: &Harness<SimDisk>) -> Vec<ReceiptGap> {
    harness.stream_state("main").expect("known").gaps
}

fn pinned(harness: &Harness<SimDisk>) -> u64 {
    harness.stream_state("main").expect("known").pinned_bytes
}

/// The last sequences of the journal's segments, oldest first.
fn ends(harness: &Harness<SimDisk>) -> Vec<Seq> {
    harness.engine.segments().iter().map(|segment| segment.last).collect()
}

#[test]
fn a_gap_takes_as_many_of_the_oldest_segments_as_are_too_many() {
    let (disk, mut harness) = opened(&kept(u64::MAX));
    event(&mut harness, 1);
    device_records(&mut harness, 5 * SEGMENT as usize);
    drop(harness);
    disk.kill();
    let open = |hard| Harness::open(&Arc::new(disk.fork()), &kept(hard), START);
    let harness = open(u64::MAX);
    let (all, ends) = (pinned(&harness), ends(&harness));
    let used: Vec<u64> = harness.engine.segments().iter().map(|segment| u64::from(segment.used)).collect();
    assert!(used.len() > 4 && used.iter().sum::<u64>() == all);
    for (hard, expected) in [
        (all, None),
        (all - 1, Some(ends[0])),
        // With the room of the gap's own record.
        (all - used[0] + 1_000, Some(ends[0])),
        (all - used[0] - 1, Some(ends[1])),
        (0, Some(ends[ends.len() - 2])),
    ] {
        let mut harness = open(hard);
        harness.settle().expect("the disk works");
        let gaps = gaps(&harness);
        assert_eq!(
            gaps.first().map(|gap| (gap.first, gap.last)),
            expected.map(|last| (Seq(1), last)),
            "{hard}"
        );
        assert!(gaps.len() <= 1, "{hard}: {gaps:?}");
        // What is behind it is told as it is.
        let told = harness.stream(Seq(0));
        assert_eq!(told.iter().filter(|(_, event)| matches!(event, StreamEvent::Gap(_))).count(), gaps.len());
    }
}

/// The journal keeps what a gap has passed, for something else: it counts for the gap no more.
#[test]
fn what_a_gap_has_passed_is_never_taken_again() {
    let (disk, mut harness) = opened(&kept(3 * SEGMENT));
    for message in 1..=4 {
        event(&mut harness, message);
        device_records(&mut harness, 2 * SEGMENT as usize);
        assert!(pinned(&harness) <= 3 * SEGMENT, "{message}");
    }
    let before = gaps(&harness);
    let arrived = places(&harness, record::RECEIPT).into_iter().filter(|(seq, _)| *seq <= before[0].last);
    let arrived = arrived.count() as u64;
    assert_eq!((before.len(), before[0].first, of_messages(&before[0])), (1, Seq(1), arrived), "{before:?}");
    assert!(arrived > 2);
    assert_eq!(harness.engine.segments()[0].first, Seq(1), "the journal has lost nothing");
    harness = again(&disk, harness, &kept(3 * SEGMENT));
    harness.settle().expect("the disk works");
    assert_eq!(gaps(&harness), before);
}

/// What is said of two streams lies in the same segments. Where nothing of its own is, a stream has lost nothing.
#[test]
fn a_range_without_events_of_the_stream_is_no_loss() {
    let streams: Vec<Arc<str>> = vec!["main".into(), "second".into()];
    let app_streams = [(app(), "main".into()), (other(), "second".into())].into();
    let options = StoreOptions { streams, app_streams, ..kept(3 * SEGMENT) };
    let (disk, mut harness) = opened(&options);
    let others = |harness: &mut Harness<SimDisk>, count: u32| {
        for _ in 0..count {
            let mut reinstalled = seen(1);
            (reinstalled.app, reinstalled.key) = (other(), other_device(1));
            reinstalled.attributes = Attributes::whole(vec![7; 1_000].into());
            reinstalled.state_lost = true;
            let seen = Command::Seen { device: Box::new(reinstalled), session: session(1) };
            harness.apply(seen).expect("the disk works");
            harness.settle().expect("the disk works");
        }
    };
    // Registrations are events, too.
    harness.ack_stream(harness.head());
    others(&mut harness, 40);
    event(&mut harness, 1);
    let before = harness.engine.stream_bounds("main").expect("known").cursor;
    others(&mut harness, 80);
    let (told, state) = (harness.stream(before), harness.stream_state("main").expect("known"));
    assert!(state.gaps.len() == 1 && of_messages(&state.gaps[0]) == 1, "{state:?}");
    assert!(state.bounds.cursor > before, "nothing but foreign records lay behind it");
    assert!(matches!(told[..], [(_, StreamEvent::Gap(_))]), "{told:?}");
    // From now on nothing follows but what isn't its own. The gap isn't read, and stays.
    let cursor = state.bounds.cursor;
    event(&mut harness, 2);
    others(&mut harness, 160);
    for _ in 0..2 {
        let (told, state) = (harness.stream(cursor), harness.stream_state("main").expect("known"));
        // What moved over nothing of its own may be forgotten at a start.
        assert!(state.bounds.cursor <= cursor, "{state:?}");
        assert_eq!(state.gaps.iter().map(of_messages).sum::<u64>(), 2, "{state:?}");
        assert!(told.iter().all(|(_, event)| matches!(event, StreamEvent::Gap(_))), "{told:?}");
        harness = again(&disk, harness, &options);
    }
}

/// More than is looked at in one slice: so many events of so many bytes.
fn large(events: u64) -> (Arc<SimDisk>, Harness<SimDisk>) {
    let options = StoreOptions { segment_bytes: 8 * 1024 * 1024, unmatched_per_second: u32::MAX, ..small() };
    let (disk, mut harness) = opened(&options);
    harness.ack_stream(harness.head());
    let mut device = seen(0);
    device.attributes = Attributes::whole(vec![7; 4_000].into());
    harness.apply(Command::Seen { device: Box::new(device), session: session(0) }).expect("the disk works");
    for n in 0..events {
        harness.acks(vec![ack(0, 0, &[(700_000 + n, Event::Click)], START)]);
    }
    harness.settle().expect("the disk works");
    (disk, harness)
}

fn drop_unread(harness: &mut Harness<SimDisk>) -> Answer {
    let (reply, answer) = oneshot::channel();
    let stream = "main".into();
    harness.apply(Command::RetireStream { stream, force: true, reply }).expect("the disk works");
    harness.commit().expect("the disk works");
    answer
}

fn told(mut answer: Answer) -> Result<Retired, RetireError> {
    answer.try_recv().expect("answered")
}

#[test]
fn what_is_counted_in_several_slices_is_counted_once() {
    let (disk, mut harness) = large(700);
    let head = harness.head();
    let answer = drop_unread(&mut harness);
    let busy = drop_unread(&mut harness);
    assert_eq!(told(busy), Err(RetireError::Busy), "one at a time");
    harness.settle().expect("the disk works");
    assert_eq!(told(answer), Ok(Retired { sequence: Seq(head.0 + 1), ended: false }));
    for _ in 0..2 {
        let gaps = gaps(&harness);
        assert_eq!(
            (gaps.len(), gaps[0].last, gaps[0].by_event.get("click")),
            (1, head, Some(&700)),
            "{gaps:?}"
        );
        harness = again(&disk, harness, &small());
    }
}

#[test]
fn what_is_read_while_it_is_counted_is_not_lost() {
    let (_disk, mut harness) = large(700);
    let events = harness.stream(harness.engine.stream_bounds("main").expect("known").cursor);
    let clicks = |after: Seq| events.iter().filter(|(seq, _)| *seq > after).count() as u64;
    let head = harness.head();
    let answer = drop_unread(&mut harness);
    harness.engine.maintain(harness.now).expect("the disk works");
    let read = events[10].0;
    harness.ack_stream(read);
    harness.settle().expect("the disk works");
    assert!(told(answer).is_ok_and(|done| !done.ended));
    let gaps = gaps(&harness);
    assert_eq!((gaps[0].first, gaps[0].last), (Seq(read.0 + 1), head));
    assert_eq!(gaps[0].by_event.get("click"), Some(&clicks(read)), "{gaps:?}");
}

#[test]
fn where_all_of_it_was_read_while_it_was_counted_nothing_is_dropped() {
    let (_disk, mut harness) = large(700);
    let head = harness.head();
    let answer = drop_unread(&mut harness);
    harness.engine.maintain(harness.now).expect("the disk works");
    harness.ack_stream(head);
    harness.settle().expect("the disk works");
    let cursor_is_written = harness.head();
    assert_eq!(told(answer), Ok(Retired { sequence: cursor_is_written, ended: false }));
    assert_eq!(gaps(&harness), []);
    harness.acks(vec![ack(0, 0, &[(1, Event::Click)], START)]);
    harness.commit().expect("the disk works");
    assert_eq!(harness.stream(head).len(), 1, "what came then is there");
}

/// At the hard bound nobody waits for it: whoever reads meanwhile has what was to go.
#[test]
fn a_reader_that_comes_in_time_loses_nothing_at_the_hard_bound() {
    let (disk, harness) = large(700);
    drop(harness);
    disk.kill();
    // All of it is in closed segments, as others are smaller.
    let options = StoreOptions { segment_bytes: 64 * 1024, stream_hard_bytes: 1_024, ..small() };
    let mut harness = Harness::open(&disk, &options, START);
    device_records_until_rolled(&mut harness);
    let head = harness.head();
    harness.engine.maintain(harness.now).expect("the disk works");
    harness.ack_stream(head);
    harness.settle().expect("the disk works");
    assert_eq!(gaps(&harness), []);
}

fn device_records_until_rolled(harness: &mut Harness<SimDisk>) {
    let before = harness.engine.segments().len();
    for n in 0_u32.. {
        if harness.engine.segments().len() > before {
            return;
        }
        let mut device = seen(1);
        device.attributes = Attributes::whole(vec![n as u8; 4_000].into());
        harness
            .apply(Command::Seen { device: Box::new(device), session: session(1) })
            .expect("the disk works");
        harness.commit().expect("the disk works");
    }
}

/// The last record that the gap takes can't be read, and in it is one that says that others are lost.
#[test]
fn a_gap_says_that_something_could_not_be_read_wherever_it_was() {
    let (disk, mut harness) = opened(&kept(u64::MAX));
    for message in 1..=4 {
        event(&mut harness, message);
    }
    harness.ack_stream(harness.head());
    let cursor = harness.engine.stream_bounds("main").expect("known").cursor;
    flip(&disk, places(&harness, record::RECEIPT)[1].1);
    harness.now += 10_000;
    // The start says what is lost, behind the cursor.
    harness = again(&disk, harness, &kept(u64::MAX));
    harness.settle().expect("the disk works");
    assert_eq!(places(&harness, record::LOST).len(), 1);
    event(&mut harness, 5);
    device_records(&mut harness, 4 * SEGMENT as usize);
    let last = ends(&harness)[1];
    let place = places(&harness, record::DEVICE).into_iter().find(|(seq, _)| *seq == last);
    let (_, place) = place.expect("device records fill it");
    flip(&disk, place);
    let hard = pinned(&harness) - 2 * SEGMENT;
    harness = again(&disk, harness, &kept(hard));
    harness.settle().expect("the disk works");
    let gaps = gaps(&harness);
    assert!(gaps[0].first == Seq(cursor.0 + 1) && gaps[0].last >= last, "{gaps:?}, {last}");
    assert_eq!(gaps[0].by_event.get("unreadable"), Some(&2), "{gaps:?}");
    assert_eq!(gaps[0].by_event.get("arrive"), Some(&1), "{gaps:?}");
}

/// However little room there is, a cursor that is acknowledged is no failure; and it is kept wherever its record fits.
#[test]
fn a_cursor_is_kept_where_there_is_room_for_it() {
    let stream: Arc<str> = "a-stream-with-a-name-as-long-as-names-of-streams-may-be-or-nearly".into();
    let options = StoreOptions {
        streams: vec![stream.clone()],
        max_bytes: 3 * SEGMENT,
        reserve_segments: 0,
        unmatched_per_second: u32::MAX,
        ..small()
    };
    let (disk, mut harness) = opened(&options);
    for n in 0..80 {
        harness.acks(vec![ack(0, 0, &[(700_000 + n, Event::Click)], START)]);
    }
    harness.commit().expect("the disk works");
    let events: Vec<Seq> = places(&harness, record::RECEIPT).into_iter().map(|(seq, _)| seq).collect();
    assert_eq!(events.len(), 80);
    while harness.engine.room() > 8_000 {
        assert!(super::brim::filler(&mut harness));
    }
    let (mut kept, mut last_kept) = (0, Seq(0));
    // The last one stays unread: a cursor behind which there is nothing needs no record.
    for cursor in &events[..79] {
        let (before, room) = (harness.engine.head(), harness.engine.room());
        harness.ack_stream_of(&stream, *cursor);
        assert_eq!(harness.engine.stream_bounds(&stream).expect("known").cursor, *cursor);
        if harness.engine.head() > before {
            (kept, last_kept) = (kept + 1, *cursor);
        } else {
            assert!(room < 600, "{room} left");
        }
        super::brim::filler(&mut harness);
    }
    assert!(kept > 20 && kept < 79, "{kept}");
    harness = again(&disk, harness, &options);
    assert_eq!(harness.engine.stream_bounds(&stream).expect("known").cursor, last_kept);
}
