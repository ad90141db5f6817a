//! Streams beyond the cursor: the gap at the hard bound, streams and apps that change with the configuration, retirement.

use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Wake, Waker};

use super::plan::START;
use super::support::{Harness, ack, app, batch, of_messages, seen, session, small};
use crate::ids::{AppKey, DeviceKey, DigestKey, Seq};
use crate::push::{Attributes, Event, NewBatch, ReceiptGap, Rejection, StreamEvent};
use crate::store::disk::Disk;
use crate::store::disk::sim::SimDisk;
use crate::store::engine::{Shared, StoreFailure};
use crate::store::options::StoreOptions;
use crate::store::{Command, RetireError, StreamError};

const HOUR: u64 = 3_600_000;
const SEGMENT: u64 = 16 * 1024;

pub(super) fn other() -> AppKey {
    AppKey::parse("other").expect("valid")
}

/// Device n under the other app.
pub(super) fn other_device(n: u32) -> DeviceKey {
    DeviceKey::of(&DigestKey([7; 32]), &other(), &format!("device-{n}"))
}

/// The same batch of the other app.
pub(super) fn of_other(mut new: NewBatch, n: u32) -> NewBatch {
    (new.app, new.targets) = (other(), vec![other_device(n)]);
    new
}

pub(super) fn opened(options: &StoreOptions) -> (Arc<SimDisk>, Harness<SimDisk>) {
    let disk = Arc::new(SimDisk::new());
    let mut harness = Harness::open(&disk, options, START);
    see_all(&mut harness).expect("the disk works");
    (disk, harness)
}

pub(super) fn see_all(harness: &mut Harness<SimDisk>) -> Result<(), StoreFailure> {
    for n in 0..3 {
        let mut others = seen(n);
        (others.app, others.key) = (other(), other_device(n));
        for device in [seen(n), others] {
            harness.apply(Command::Seen { device: Box::new(device), session: session(n) })?;
        }
    }
    harness.commit()
}

pub(super) fn reopened(
    disk: &Arc<SimDisk>,
    harness: Harness<SimDisk>,
    options: &StoreOptions,
) -> Harness<SimDisk> {
    drop(harness);
    disk.kill();
    Harness::open(disk, options, START)
}

/// One message that arrives: an event of `main`.
pub(super) fn event(harness: &mut Harness<SimDisk>, message: u64) {
    harness.deliver(batch(&format!("b{message}"), message, &[0], START, HOUR)).expect("accepted");
    harness.arrive(0, message);
}

pub(super) fn other_event(harness: &mut Harness<SimDisk>, message: u64) {
    let new = batch(&format!("o{message}"), message, &[0], START, HOUR);
    harness.deliver(of_other(new, 0)).expect("accepted");
    let mut one = ack(0, 1, &[(message, Event::Arrive)], START);
    one.device = other_device(0);
    harness.acks(vec![one]);
    harness.commit().expect("the disk works");
}

/// Journal bytes that are no events (but for the first) and no batches: an app that is reinstalled again and again.
pub(super) fn device_records(harness: &mut Harness<SimDisk>, bytes: usize) {
    for _ in 0..bytes / 1_000 {
        let mut device = seen(1);
        device.attributes = Attributes::whole(vec![7; 1_000].into());
        device.state_lost = true;
        harness
            .apply(Command::Seen { device: Box::new(device), session: session(1) })
            .expect("the disk works");
        harness.settle().expect("the disk works");
    }
}

/// Message ids, and gaps as minus their events; nothing of devices.
pub(super) fn said(events: &[(Seq, StreamEvent)]) -> Vec<i64> {
    let one = |(seq, event): &(Seq, StreamEvent)| match event {
        StreamEvent::Device(_) => None,
        StreamEvent::Receipt(receipt) => Some(receipt.message.0 as i64),
        StreamEvent::Mass(mass) => Some(i64::from(mass.count) * 1_000),
        StreamEvent::Gap(gap) => {
            assert_eq!((*seq, gap.events), (gap.last, gap.by_event.values().sum()));
            Some(-(of_messages(gap) as i64))
        }
    };
    assert!(events.is_sorted_by_key(|(seq, _)| *seq));
    events.iter().filter_map(one).collect()
}

pub(super) fn hard() -> StoreOptions {
    StoreOptions {
        stream_soft_bytes: 2 * SEGMENT,
        stream_hard_bytes: 4 * SEGMENT,
        checkpoint_bytes: 20_000,
        ..small()
    }
}

#[test]
fn at_the_hard_bound_a_gap_takes_the_place_of_the_oldest_whatever_pins() {
    let options = hard();
    let (disk, mut harness) = opened(&options);
    event(&mut harness, 1);
    let first = harness.stream(Seq(0));
    harness.ack_stream(first[0].0);
    event(&mut harness, 2);
    event(&mut harness, 3);
    // Batches are refused at the soft bound, and what is no batch goes on: device records, clicks.
    device_records(&mut harness, 3 * SEGMENT as usize);
    let refused = harness.deliver(batch("full", 9, &[0], START, HOUR));
    assert_eq!(refused, Err(Rejection::StreamFull));
    assert!(
        harness.stream_state("main").expect("known").gaps.is_empty(),
        "nothing is lost at the soft bound"
    );
    harness.acks(vec![ack(0, 9, &[(3, Event::Click)], START)]);
    harness.commit().expect("the disk works");
    device_records(&mut harness, 6 * SEGMENT as usize);
    assert_eq!(said(&harness.stream(first[0].0)), [-3], "two arrives and a click");
    let state = harness.stream_state("main").expect("known");
    assert!(state.unread && state.pinned_bytes <= options.stream_hard_bytes + SEGMENT, "{state:?}");
    let mut gap = state.gaps[0].clone();
    assert_eq!(gap.by_event.get("arrive"), Some(&2));
    assert_eq!(gap.by_event.get("click"), Some(&1));
    assert!(harness.engine.stats().segments_removed.load(std::sync::atomic::Ordering::Relaxed) > 2);

    // What comes after it is read after it; a restart and a rewind say the same.
    harness.arrive(1, 77_777);
    for again in 0..3 {
        let bounds = harness.engine.stream_bounds("main").expect("known");
        assert_eq!((bounds.cursor, bounds.oldest), (first[0].0, first[0].0));
        let all = harness.stream(bounds.oldest);
        assert_eq!(said(&all), [-3, 77_777], "{again}");
        gap = match &all[0].1 {
            StreamEvent::Gap(gap) => (**gap).clone(),
            other => panic!("{other:?}"),
        };
        // From its middle it is the same gap.
        assert_eq!(harness.stream(Seq(gap.first.0 + 1))[0].1, all[0].1);
        if again == 1 {
            harness.checkpoint().expect("the disk works");
        }
        harness = reopened(&disk, harness, &options);
    }
    // Acknowledged, it's gone for a reader that goes on from there.
    harness.ack_stream(gap.last);
    assert_eq!(said(&harness.stream(gap.last)), [77_777]);
    harness = reopened(&disk, harness, &options);
    assert_eq!(harness.engine.stream_bounds("main").expect("known").cursor, gap.last);
    assert!(harness.stream_state("main").expect("known").gaps.is_empty());
    harness.ack_stream(harness.head());
    harness.settle().expect("the disk works");
    harness.deliver(batch("after", 10, &[0], START, HOUR)).expect("taken again");
}

#[test]
fn a_gap_grows_until_it_was_read_and_then_another_one_follows() {
    let options = hard();
    let (_disk, mut harness) = opened(&options);
    event(&mut harness, 1);
    device_records(&mut harness, 6 * SEGMENT as usize);
    // Unmatched ones are events too.
    harness.arrive(1, 55_555);
    device_records(&mut harness, 6 * SEGMENT as usize);
    let state = harness.stream_state("main").expect("known");
    assert_eq!(state.gaps.len(), 1, "{state:?}");
    assert_eq!(said(&harness.stream(Seq(0))), [-2]);
    let read = harness.engine.read_stream("main", Seq(0), 10, 1_000).expect("readable");
    harness.arrive(1, 66_666);
    device_records(&mut harness, 8 * SEGMENT as usize);
    let gaps: Vec<ReceiptGap> = harness.stream_state("main").expect("known").gaps;
    assert_eq!(gaps.iter().map(of_messages).collect::<Vec<_>>(), [2, 1]);
    assert!(gaps[0].last == read.cursor && gaps[1].first > read.cursor, "{gaps:?}");
    // The reader that had the first one gets only the other; one that comes back gets both.
    assert_eq!(said(&harness.stream(read.cursor)), [-1]);
    assert_eq!(said(&harness.stream(Seq(0))), [-2, -1]);
}

/// A stream with nothing to read holds nothing back: the journal goes on without it, past its cursor. What comes then counts.
#[test]
fn a_gap_counts_what_came_after_the_journal_had_passed_an_idle_stream() {
    let options = hard();
    let (disk, mut harness) = opened(&options);
    device_records(&mut harness, 1_000);
    harness.ack_stream(harness.head());
    let idle = harness.engine.stream_bounds("main").expect("known").cursor;
    device_records(&mut harness, 8 * SEGMENT as usize);
    // Nothing but the newest segment is left, so that the event is in the oldest one.
    for _ in 0..3 {
        device_records(&mut harness, 1_000);
        harness.checkpoint().expect("the disk works");
        harness.settle().expect("the disk works");
    }
    let passed = harness.engine.stream_bounds("main").expect("known").cursor;
    assert!(passed > idle, "the journal keeps {passed} yet");
    harness.arrive(1, 55_555);
    device_records(&mut harness, 8 * SEGMENT as usize);
    for again in 0..2 {
        let bounds = harness.engine.stream_bounds("main").expect("known");
        assert_eq!(said(&harness.stream(bounds.cursor)), [-1], "{again}: {bounds:?}");
        harness = reopened(&disk, harness, &options);
    }
}

pub(super) fn two(app_of: &str, other_of: &str) -> StoreOptions {
    let mut streams: Vec<Arc<str>> = vec![app_of.into(), other_of.into()];
    streams.sort();
    streams.dedup();
    let app_streams = [(app(), app_of.into()), (other(), other_of.into())].into();
    StoreOptions { streams, app_streams, ..small() }
}

#[test]
fn an_app_that_maps_to_another_stream_leaves_its_unread_events_to_the_old_one() {
    let (disk, mut harness) = opened(&two("main", "second"));
    event(&mut harness, 1);
    other_event(&mut harness, 2);
    harness.ack_stream_of("second", harness.head());
    for message in 3..5 {
        event(&mut harness, message);
    }
    // Both change places. What is unread stays where it is, what follows goes the new way.
    let changed = two("second", "main");
    harness = reopened(&disk, harness, &changed);
    event(&mut harness, 5);
    other_event(&mut harness, 6);
    for again in 0..3 {
        let stream = |harness: &Harness<SimDisk>, name: &str| {
            let from = harness.engine.stream_bounds(name).expect("known").cursor;
            said(&harness.try_stream_of(name, from).expect("readable"))
        };
        assert_eq!(stream(&harness, "main"), [1, 3, 4, 6], "{again}");
        assert_eq!(stream(&harness, "second"), [5], "{again}");
        assert_eq!(said(&harness.try_stream_of("second", Seq(0)).expect("readable")), [2, 5]);
        if again == 1 {
            harness.checkpoint().expect("the disk works");
        }
        harness = reopened(&disk, harness, &changed);
    }
}

/// However little space there is: a start that can't write which app maps to which stream is none, as the next one would not know whose the
/// events are.
#[test]
fn a_start_on_a_full_disk_fails_or_its_streams_are_kept() {
    let (mut opened, mut refused) = (0, 0);
    for acks in 0..120 {
        let with = |app_of, other_of| StoreOptions {
            reserve_segments: 0,
            unmatched_per_second: u32::MAX,
            ..two(app_of, other_of)
        };
        let (disk, mut harness) = self::opened(&with("main", "second"));
        event(&mut harness, 1);
        other_event(&mut harness, 2);
        for number in 0..acks {
            harness.acks(vec![ack(0, number + 1, &[(999_000 + number, Event::Click)], START)]);
            harness.commit().expect("the disk works");
        }
        drop(harness);
        disk.kill();
        // Spare segments are gone, as what isn't durable yet may be, and somebody else has their space.
        for name in disk.list().expect("readable").iter().filter(|name| name.starts_with("spare-")) {
            disk.remove(name).expect("there");
        }
        disk.set_capacity(Some(disk.used()));
        let changed = with("third", "main");
        let mut harness = match Harness::try_open(&disk, &changed, START) {
            Ok(harness) => harness,
            Err(error) => {
                assert!(error.to_string().contains("disk is full"), "{error}");
                refused += 1;
                continue;
            }
        };
        opened += 1;
        disk.set_capacity(None);
        harness.now += 10_000;
        harness.settle().expect("the disk works");
        event(&mut harness, 3);
        other_event(&mut harness, 4);
        let told = |harness: &Harness<SimDisk>| {
            ["main", "second", "third"].map(|name| {
                let bounds = harness.engine.stream_bounds(name).expect("known");
                let events = harness.try_stream_of(name, bounds.cursor).expect("readable");
                (bounds.cursor, events)
            })
        };
        let before = told(&harness);
        let harness = reopened(&disk, harness, &changed);
        assert_eq!(told(&harness), before, "behind {acks} acks");
    }
    assert!(opened > 100 && refused > 2, "{opened} opened, {refused} refused");
}

#[test]
fn a_stream_of_no_configuration_is_kept_and_readable_until_it_is_retired() {
    let (disk, mut harness) = opened(&two("main", "second"));
    other_event(&mut harness, 1);
    assert_eq!(harness.retire("second", false), Err(RetireError::Configured));
    assert_eq!(harness.retire("third", true), Err(RetireError::Unknown));
    let without = StoreOptions { checkpoint_bytes: 20_000, ..two("main", "main") };
    harness = reopened(&disk, harness, &without);
    other_event(&mut harness, 2);
    let state = harness.stream_state("second").expect("kept");
    assert!(!state.configured && state.unread && harness.stream_state("main").expect("known").configured);
    assert_eq!(said(&harness.try_stream_of("second", Seq(0)).expect("readable")), [1]);
    assert_eq!(said(&harness.stream(Seq(0))), [2]);
    // It holds the journal, its reader or the hard bound notwithstanding, until it is retired.
    harness.ack_stream(harness.head());
    device_records(&mut harness, 5 * SEGMENT as usize);
    harness.ack_stream(harness.head());
    let oldest = |harness: &Harness<SimDisk>| harness.engine.stream_bounds("main").expect("known").oldest;
    let held = oldest(&harness);
    assert!(harness.stream_state("second").expect("kept").pinned_bytes > 4 * SEGMENT);
    let retired = harness.retire("second", false).expect("it has no apps");
    assert!(retired.ended);
    device_records(&mut harness, 2 * SEGMENT as usize);
    assert!(oldest(&harness) > held);
    harness = reopened(&disk, harness, &without);
    assert_eq!(harness.stream_state("second"), None);
    assert!(matches!(harness.engine.read_stream("second", Seq(0), 1, 1), Err(StreamError::Unknown)));
    // One of the same name is another one.
    harness = reopened(&disk, harness, &two("main", "second"));
    other_event(&mut harness, 3);
    let from = harness.engine.stream_bounds("second").expect("new").cursor;
    assert!(from >= retired.sequence);
    assert_eq!(said(&harness.try_stream_of("second", from).expect("readable")), [3]);
}

/// Looks at a stream at the very moment at which its reader is woken.
struct Glance {
    shared: Arc<Shared<SimDisk>>,
    is_gone: Mutex<Option<bool>>,
}

impl Wake for Glance {
    fn wake(self: Arc<Self>) {
        let gone = self.shared.streams.bounds(&self.shared.reader, "second").is_err();
        *self.is_gone.lock().expect("not poisoned") = Some(gone);
    }
}

#[test]
fn a_retired_streams_reader_finds_it_gone_when_it_is_woken_for_the_last_time() {
    let (disk, mut harness) = opened(&two("main", "second"));
    other_event(&mut harness, 1);
    harness = reopened(&disk, harness, &two("main", "main"));
    let shared = harness.engine.shared().clone();
    let mut head = shared.head.subscribe();
    let glance = Arc::new(Glance { shared, is_gone: Mutex::default() });
    let waker = Waker::from(glance.clone());
    let mut changed = pin!(head.changed());
    assert!(changed.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    harness.retire("second", true).expect("it has no apps");
    let is_gone = *glance.is_gone.lock().expect("not poisoned");
    assert_eq!(is_gone, Some(true), "nothing wakes the reader again: it would wait for ever");
}

#[test]
fn with_force_what_is_unread_of_a_stream_with_apps_becomes_a_gap() {
    let options = two("main", "second");
    let (disk, mut harness) = opened(&options);
    for message in 1..4 {
        event(&mut harness, message);
    }
    other_event(&mut harness, 4);
    let done = harness.retire("main", true).expect("dropped");
    assert!(!done.ended);
    event(&mut harness, 5);
    harness = reopened(&disk, harness, &options);
    assert_eq!(said(&harness.stream(Seq(0))), [-3, 5]);
    assert_eq!(
        said(&harness.try_stream_of("second", Seq(0)).expect("readable")),
        [4],
        "another stream's stay"
    );
    // With nothing unread there is nothing to drop.
    harness.ack_stream(harness.head());
    assert!(!harness.retire("main", true).expect("nothing to do").ended);
    assert!(harness.stream_state("main").expect("known").gaps.is_empty());
}

/// A stream with nothing to read holds nothing back. Its router has everything, and is told so: not that it missed something.
#[test]
fn a_router_that_has_everything_of_an_idle_stream_may_go_on_where_it_was() {
    let options = hard();
    let (disk, mut harness) = opened(&options);
    event(&mut harness, 1);
    let early = harness.stream(Seq(0));
    event(&mut harness, 2);
    device_records(&mut harness, 1_000);
    let cursor = harness.head();
    harness.ack_stream(cursor);
    device_records(&mut harness, 8 * SEGMENT as usize);
    for _ in 0..3 {
        device_records(&mut harness, 1_000);
        harness.checkpoint().expect("the disk works");
        harness.settle().expect("the disk works");
    }
    for again in 0..3 {
        let bounds = harness.engine.stream_bounds("main").expect("known");
        assert!(bounds.cursor > cursor, "the journal keeps everything yet: {bounds:?}");
        assert!(bounds.oldest <= cursor && bounds.oldest > early[0].0, "{again}: {bounds:?}");
        assert_eq!(said(&harness.stream(cursor)), [0; 0], "{again}");
        if again == 1 {
            harness.checkpoint().expect("the disk works");
        }
        harness = reopened(&disk, harness, &options);
    }
    // What comes then is read from there.
    event(&mut harness, 3);
    for again in 0..2 {
        let bounds = harness.engine.stream_bounds("main").expect("known");
        assert!(bounds.oldest <= cursor && bounds.cursor > cursor, "{again}: {bounds:?}");
        assert_eq!(said(&harness.stream(cursor)), [3], "{again}");
        harness.checkpoint().expect("the disk works");
    }
}

/// What can't be read was perhaps an event: a reader must not take it for nothing.
#[test]
fn a_gap_over_what_can_not_be_read_is_told() {
    let options = hard();
    let (disk, mut harness) = opened(&options);
    device_records(&mut harness, 1_000);
    harness.ack_stream(harness.head());
    let cursor = harness.engine.stream_bounds("main").expect("known").cursor;
    event(&mut harness, 1);
    let segments = disk.list().expect("readable");
    let newest = segments.iter().filter(|name| name.starts_with("journal-")).max().expect("a segment");
    device_records(&mut harness, 2 * SEGMENT as usize);
    disk.fail_reads(Some(newest));
    device_records(&mut harness, 6 * SEGMENT as usize);
    disk.fail_reads(None);
    for again in 0..2 {
        let events = harness.stream(cursor);
        let Some((_, StreamEvent::Gap(gap))) = events.first() else { panic!("{again}: no gap: {events:?}") };
        assert_eq!(gap.by_event.get("unreadable"), Some(&1), "{again}: {gap:?}");
        harness = reopened(&disk, harness, &options);
    }
}

#[test]
fn a_stream_that_was_retired_stays_so_and_the_others_stay() {
    let disk = Arc::new(SimDisk::new());
    let both = StoreOptions { streams: vec!["main".into(), "old".into()], ..small() };
    drop(Harness::open(&disk, &both, START));
    let one = StoreOptions { streams: vec!["main".into()], ..both };
    let mut harness = Harness::open(&disk, &one, START);
    assert!(harness.stream_state("old").is_some(), "it waits to be retired");
    harness.retire("old", false).expect("nothing is left in it");
    for _ in 0..2 {
        drop(harness);
        disk.kill();
        harness = Harness::open(&disk, &one, START);
        assert!(harness.stream_state("old").is_none() && harness.stream_state("main").is_some());
    }
}
