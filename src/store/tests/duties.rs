//! What the engine does in turns between two commits, how it counts what is live, and what it says of itself.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::common::{HOUR, SEGMENT, again, messages, opened, pass};
use super::plan::START;
use super::support::{Harness, Told, app, batch, device, seen, session, small};
use crate::ids::MessageId;
use crate::push::{Attributes, Failure, Millis, Rejection, Seen};
use crate::store::disk::sim::SimDisk;
use crate::store::options::StoreOptions;
use crate::store::{Command, Query};

#[test]
fn what_is_only_to_be_told_waits_for_a_commit_too() {
    let (_disk, mut harness) = opened(&small());
    harness.settle().expect("the disk works");
    assert!(!harness.engine.has_staged() && harness.engine.staged_bytes() == 0);
    let commits = harness.figure("commits");
    let mut answer = harness.stage_batch(batch("late", 1, &[0], START - HOUR, 1_000));
    assert!(harness.engine.has_staged() && harness.engine.staged_bytes() == 0);
    assert!(harness.engine.maintain(START).expect("the disk works"), "that comes first");
    assert!(answer.try_recv().is_err());
    harness.commit().expect("the disk works");
    assert_eq!(answer.try_recv().expect("answered"), Err(Rejection::Expired));
    assert_eq!(harness.figure("commits"), commits, "nothing was to be made durable");
    drop(harness.stage_batch(batch("b", 1, &[0], START, HOUR)));
    assert!(harness.engine.has_staged() && harness.engine.staged_bytes() > 100);
    harness.commit().expect("the disk works");
    assert_eq!((harness.figure("commits"), harness.engine.staged_bytes()), (commits + 1, 0));
}

/// Nobody is told of it: only the record waits.
#[test]
fn what_is_only_to_be_kept_waits_for_a_commit_too() {
    let options = StoreOptions { forget_after_ms: 80_000, ..small() };
    let (_disk, mut harness) = opened(&options);
    harness.settle().expect("the disk works");
    harness.now += 20_000;
    let active = Command::LastActive(vec![(device(0), harness.now)]);
    harness.apply(active).expect("the disk works");
    assert!(harness.engine.has_staged());
    assert!(harness.engine.maintain(harness.now).expect("the disk works"), "that comes first");
    harness.commit().expect("the disk works");
    assert!(!harness.engine.has_staged());
}

/// Each kind of work has its turn, however much there is of another.
#[test]
fn a_lot_that_expires_does_not_keep_others_waiting() {
    let options = StoreOptions { segment_bytes: 4 * 1024 * 1024, max_pending_per_device: 10_000, ..small() };
    let (_disk, mut harness) = opened(&options);
    for n in 0..6_000 {
        drop(harness.stage_batch(batch(&format!("b{n}"), n + 1, &[(n % 4) as u32], START, HOUR)));
    }
    harness.commit().expect("the disk works");
    harness.settle().expect("the disk works");
    harness.now += HOUR;
    // Its turn was just now.
    assert!(harness.engine.maintain(harness.now).expect("the disk works"));
    let (reply, mut answer) = oneshot::channel();
    let stream = "main".into();
    harness.apply(Command::RetireStream { stream, force: true, reply }).expect("the disk works");
    let mut turns = 0;
    while answer.try_recv().is_err() {
        turns += 1;
        harness.commit().expect("the disk works");
        harness.engine.maintain(harness.now).expect("the disk works");
    }
    let pending = harness.totals().pending;
    assert!(pending > 2_000, "{pending} left after {turns} turns");
    harness.settle().expect("the disk works");
    assert_eq!(harness.totals().pending, 0);
}

/// The batches of each segment with entries pending, and their bytes, as the batches themselves tell.
fn check_live(harness: &Harness<SimDisk>, when: &str) {
    let (counted, live) = harness.engine.live_by_segment();
    assert_eq!(counted, live, "{when}");
    let bytes = live.values().map(|(_, bytes)| bytes).sum::<u64>();
    assert_eq!(harness.engine.live_bytes(), bytes, "{when}");
}

#[test]
fn what_is_live_in_each_segment_is_known_whatever_ends_and_is_copied() {
    let options = StoreOptions { checkpoint_bytes: 20_000, ..small() };
    let (disk, mut harness) = opened(&options);
    for n in 0..200 {
        let mut new = batch(
            &format!("b{n}"),
            n + 1,
            &[0, 1, 2],
            harness.now,
            if n % 10 == 0 { 99 * HOUR } else { HOUR },
        );
        new.body = vec![7; 400 + n as usize].into();
        harness.deliver(new).expect("accepted");
        for device in 0..(if n % 10 == 0 { 2 } else { 3 }) {
            harness.arrive(device, n + 1);
        }
        harness.ack_stream(harness.head());
        harness.settle().expect("the disk works");
        harness.now += 1_000;
        check_live(&harness, &format!("message {n}"));
    }
    assert!(harness.figure("copied_bytes") > 0 && harness.figure("segments_removed") > 3);
    for checkpoint in [false, true] {
        let live = harness.engine.live_by_segment().1;
        harness = again(&disk, harness, &options);
        check_live(&harness, "after a start");
        assert_eq!(harness.engine.live_by_segment().1, live, "{checkpoint}");
        harness.checkpoint().expect("the disk works");
    }
    harness.now += 100 * HOUR;
    harness.settle().expect("the disk works");
    assert_eq!((harness.engine.live_bytes(), harness.engine.live_by_segment().0.len()), (0, 0));
}

/// Another record stands where its own should be: nobody of that one's targets is meant.
#[test]
fn a_batch_whose_place_holds_another_record_is_damaged() {
    let (_disk, mut harness) = opened(&small());
    for message in 1..=2 {
        harness
            .deliver(batch(&format!("b{message}"), message, &[0, 1], START, message * HOUR))
            .expect("accepted");
    }
    let pulled = harness.pull(0);
    let (first, second) = (&pulled[0].batch, &pulled[1].batch);
    first.misplace(second);
    harness.now += HOUR;
    harness.settle().expect("the disk works");
    let totals = harness.totals();
    assert_eq!((totals.failed[Failure::Storage as usize - 1], totals.pending), (2, 2));
    assert_eq!((messages(&harness, 0), messages(&harness, 1)), (vec![2], vec![2]));
}

#[test]
fn a_credential_that_is_revoked_twice_counts_once() {
    let (disk, mut harness) = opened(&small());
    for n in [0, 9, 0] {
        let (reply, _answer) = oneshot::channel();
        let revoke =
            Command::RevokeCredentials { device: device(n), epoch: 1, allow_registration: true, reply };
        harness.apply(revoke).expect("the disk works");
        harness.commit().expect("the disk works");
    }
    for checkpoint in [false, true, true] {
        assert_eq!(harness.engine.revoked(), 2);
        if checkpoint {
            harness.checkpoint().expect("the disk works");
        }
        harness = again(&disk, harness, &small());
    }
}

#[test]
fn a_batch_as_old_as_ids_are_remembered_is_taken_and_no_older_one() {
    let (_disk, mut harness) = opened(&small());
    let window = small().batch_window_ms;
    for (age, taken) in [(window, true), (window + 1, false)] {
        let mut new = batch(&format!("b{age}"), age, &[0], harness.now - age, 0);
        new.expires_at = harness.now + HOUR;
        assert_eq!(harness.deliver(new).is_ok(), taken, "{age}");
    }
}

fn taken_back(harness: &mut Harness<SimDisk>, message: u64) {
    let (reply, mut answer) = oneshot::channel();
    let message = MessageId(message);
    harness.apply(Command::Revoke { app: app(), message, reply }).expect("the disk works");
    harness.settle().expect("the disk works");
    answer.try_recv().expect("answered").expect("taken back");
}

/// Whether a batch of the message reaches anybody.
fn reaches(harness: &mut Harness<SimDisk>, id: &str, message: u64) -> bool {
    let answer = harness.deliver(batch(id, message, &[0], harness.now, 1_000)).expect("accepted");
    assert_eq!(answer.accepted, 1);
    !harness.pull(0).is_empty()
}

const MINUTE: Millis = 60_000;

/// For as long as anybody may still send it: three days from now, if nobody has yet.
#[test]
fn what_is_taken_back_before_it_comes_is_remembered_as_long_as_it_could_live() {
    for (after, expected) in [(72 * HOUR - 1, false), (72 * HOUR, true)] {
        let (_disk, mut harness) = opened(&small());
        taken_back(&mut harness, 1);
        harness.now += after;
        assert_eq!(reaches(&mut harness, "b", 1), expected, "{after}");
    }
}

/// Ten minutes at least: who is connected is told of a message that has expired, too.
#[test]
fn what_is_taken_back_when_it_is_over_is_remembered_for_ten_minutes() {
    for (after, expected) in [(10 * MINUTE - 1, false), (10 * MINUTE, true)] {
        let (_disk, mut harness) = opened(&small());
        harness.deliver(batch("b1", 1, &[0], START, 5_000)).expect("accepted");
        harness.now += 5_000;
        harness.settle().expect("the disk works");
        taken_back(&mut harness, 1);
        harness.now += after;
        assert_eq!(reaches(&mut harness, "b", 1), expected, "{after}");
    }
}

/// More than are looked at in one slice, and they don't come back with a start.
#[test]
fn many_are_forgotten_at_once() {
    let options = StoreOptions { forget_after_ms: 80_000, segment_bytes: 1024 * 1024, parts: 2, ..small() };
    let disk = Arc::new(SimDisk::new());
    let mut harness = Harness::open(&disk, &options, START);
    for n in 0..1_500 {
        harness.see(n);
    }
    harness.settle().expect("the disk works");
    pass(&mut harness, 80_000);
    assert_eq!(harness.figure("devices"), 1_500);
    pass(&mut harness, 30_000);
    assert_eq!(harness.figure("devices"), 0);
    let told = harness.device_events(7, crate::ids::Seq(0));
    assert_eq!(told.len(), 2, "registered and forgotten: {told:?}");
    harness = again(&disk, harness, &options);
    assert_eq!(harness.report.devices, 0);
}

/// After a crash it may be known two grains too early when somebody was there.
#[test]
fn nobody_is_forgotten_before_two_grains_have_passed_beside_the_time() {
    let options = StoreOptions { forget_after_ms: 80_000, ..small() };
    let (_disk, mut harness) = opened(&options);
    pass(&mut harness, 100_000);
    assert_eq!(harness.figure("devices"), 4);
    pass(&mut harness, 11_000);
    assert_eq!(harness.figure("devices"), 0);
}

/// There is no room to say so: nobody is forgotten, until there is.
#[test]
fn forgetting_waits_for_room() {
    let options = StoreOptions { forget_after_ms: 80_000, unmatched_per_second: u32::MAX, ..small() };
    let (disk, mut harness) = opened(&options);
    harness.deliver(batch("b1", 1, &[3], START, 100 * HOUR)).expect("accepted");
    disk.set_capacity(Some(disk.used()));
    super::full::use_up(&mut harness);
    super::wakeups::fill_to_the_brim(&mut harness);
    harness.sink.take();
    for _ in 0..150 {
        harness.now += 1_000;
        harness.settle().expect("the disk works");
    }
    assert_eq!(harness.figure("devices"), 4);
    assert!(harness.engine.next_wakeup().is_some_and(|at| at <= harness.now + 1_000));
    disk.set_capacity(None);
    pass(&mut harness, 30_000);
    assert_eq!(harness.figure("devices"), 0);
    assert_eq!(harness.totals().pending, 0);
    let ended = harness.sink.take();
    assert!(matches!(ended[..], [Told::Ended(_, _, Failure::Forgotten)]), "{ended:?}");
}

#[test]
fn many_that_are_active_at_once_share_records() {
    let options = StoreOptions { forget_after_ms: 80 * HOUR, reserve_segments: 4, ..small() };
    let disk = Arc::new(SimDisk::new());
    let mut harness = Harness::open(&disk, &options, START);
    for n in 0..1_000 {
        harness.see(n);
        harness.commit().expect("the disk works");
    }
    harness.settle().expect("the disk works");
    let before = harness.head();
    harness.now += 20 * HOUR;
    let now = harness.now;
    harness
        .apply(Command::LastActive((0..1_000).map(|n| (device(n), now)).collect()))
        .expect("the disk works");
    harness.commit().expect("the disk works");
    // A quarter of a segment each.
    assert_eq!(harness.head().0 - before.0, 1_000_u64.div_ceil(SEGMENT / 4 / 24));
    harness = again(&disk, harness, &options);
    for n in [0, 169, 170, 999] {
        assert_eq!(harness.state_of(n).expect("known").last_active, now);
    }
}

/// Not all devices at the same time, and each as often as the others.
#[test]
fn activity_is_journaled_at_times_of_each_devices_own() {
    let options = StoreOptions { forget_after_ms: 80_000, max_devices: 100, ..small() };
    let disk = Arc::new(SimDisk::new());
    let mut harness = Harness::open(&disk, &options, START);
    for n in 0..100 {
        harness.see(n);
        harness.commit().expect("the disk works");
    }
    harness.settle().expect("the disk works");
    let mut times = Vec::new();
    for _ in 0..10 {
        harness.now += 1_000;
        let (now, before) = (harness.now, harness.head());
        harness
            .apply(Command::LastActive((0..100).map(|n| (device(n), now)).collect()))
            .expect("the disk works");
        let bytes = harness.engine.staged_bytes();
        harness.commit().expect("the disk works");
        times.push(if harness.head() > before { bytes / 24 } else { 0 });
    }
    // A grain is ten seconds.
    let all = times.iter().sum::<usize>();
    assert!((100..=140).contains(&all), "{times:?}");
    assert!(times.iter().all(|count| (2..40).contains(count)), "{times:?}");
}

/// What a router has to read, and what only the edge has to know.
#[test]
fn what_a_device_says_is_unread_where_it_is_an_event() {
    let (_disk, mut harness) = opened(&small());
    let says = |harness: &mut Harness<SimDisk>, seen: Seen| {
        harness.ack_stream(harness.head());
        let number = seen.key;
        harness.apply(Command::Seen { device: Box::new(seen), session: session(1) }).expect("the disk works");
        harness.commit().expect("the disk works");
        assert!(harness.engine.shared().index.of_device(&number).devices.get(&number).is_some());
        harness.stream_state("main").expect("known").unread
    };
    let with =
        |n: u32, attributes: &[u8]| Seen { attributes: Attributes::whole(attributes.into()), ..seen(n) };
    assert!(says(&mut harness, seen(7)), "a new one");
    assert!(says(&mut harness, with(7, b"others")), "other attributes");
    assert!(says(&mut harness, Seen { push_on: Some(false), ..with(7, b"others") }), "the switch");
    let reinstalled = Seen { state_lost: true, ..with(7, b"others") };
    assert!(!says(&mut harness, reinstalled), "it has nothing that could end");
    harness.settle().expect("the disk works");
    assert_eq!(harness.figure("devices"), 5, "each counts once");
    assert!(says(&mut harness, seen(8)));
    assert_eq!(harness.state_of(8).expect("known").number, 5);
}

#[test]
fn an_answer_says_as_of_when_it_holds_and_who_waits_for_the_head_is_woken() {
    let (_disk, mut harness) = opened(&small());
    let mut head = harness.engine.shared().head.subscribe();
    head.mark_unchanged();
    let ask = |harness: &mut Harness<SimDisk>| {
        let (reply, answer) = oneshot::channel();
        harness.apply(Command::Query { query: Query::Totals, reply }).expect("the disk works");
        answer
    };
    let mut answer = ask(&mut harness);
    harness.commit().expect("the disk works");
    assert_eq!(answer.try_recv().expect("answered").0, harness.head());
    assert!(!head.has_changed().expect("it is there"), "nothing is new");
    // With what is in the same group.
    let mut accepted = harness.stage_batch(batch("b", 1, &[0], START, HOUR));
    let mut answer = ask(&mut harness);
    harness.commit().expect("the disk works");
    let seq = accepted.try_recv().expect("answered").expect("accepted").seq;
    assert_eq!((answer.try_recv().expect("answered").0, *head.borrow()), (seq, seq));
    assert!(head.has_changed().expect("it is there"));
}

#[test]
fn the_journal_grows_to_its_maximum_and_not_beyond() {
    let options = StoreOptions { max_bytes: 7 * SEGMENT, ..small() };
    let (_disk, mut harness) = opened(&options);
    for n in 1..200 {
        let mut new = batch(&format!("b{n}"), n, &[0], START, HOUR);
        new.body = vec![7; 1_000].into();
        drop(harness.deliver(new));
        harness.settle().expect("the disk works");
        assert!(harness.figure("journal_bytes") <= 7 * SEGMENT, "{n}");
    }
    assert_eq!(harness.figure("journal_bytes"), 7 * SEGMENT);
}
