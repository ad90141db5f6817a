//! What happens at each maximum: it is refused at the door with its reason, and works again when there is room.

use std::sync::Arc;

use super::common::{HOUR, opened};
use super::plan::START;
use super::support::{Harness, Told, ack, batch, device, seen, session, small};
use crate::ids::Seq;
use crate::push::{Attributes, Event, Failure, Refusal, Rejection, StreamEvent};
use crate::store::Command;
use crate::store::disk::sim::SimDisk;
use crate::store::options::StoreOptions;

/// Delivers until one is rejected; answers how many were accepted, and why the last wasn't.
fn fill(harness: &mut Harness<SimDisk>, prefix: &str, targets: &[u32]) -> (u64, Rejection) {
    for n in 0..10_000 {
        let mut new = batch(&format!("{prefix}-{n}"), n + 1, targets, harness.now, HOUR);
        new.body = vec![7; 500].into();
        match harness.deliver(new) {
            Ok(_) => harness.settle().expect("the disk works"),
            Err(why) => return (n, why),
        }
    }
    panic!("never full");
}

#[test]
fn a_full_disk_refuses_batches_while_acks_go_on_and_recovers_by_itself() {
    let (disk, mut harness) =
        opened(&StoreOptions { checkpoint_bytes: 20_000, reserve_segments: 4, ..small() });
    disk.set_capacity(Some(disk.used() + 40 * 1024));
    let (accepted, why) = fill(&mut harness, "a", &[0, 1]);
    assert_eq!(why, Rejection::Unavailable);
    assert!(accepted > 10);
    harness.sink.take();
    for message in 1..=accepted {
        harness.acks(vec![ack(0, message, &[(message, Event::Arrive)], harness.now)]);
        harness.commit().expect("the disk works");
    }
    let confirmed = harness.sink.take();
    assert_eq!(confirmed.len() as u64, accepted, "every ack is confirmed from the reserve");
    assert!(harness.pull(0).is_empty());
    disk.set_capacity(None);
    // Nothing happens but time: it wakes up for its tables and other duties, and to look for room.
    let began = harness.now;
    let accepted = (0..10).any(|n| {
        harness.now = harness.engine.next_wakeup().expect("it looks again").max(harness.now);
        harness.settle().expect("the disk works");
        harness.deliver(batch(&format!("after-{n}"), 10_001, &[0], harness.now, HOUR)).is_ok()
    });
    assert!(accepted && harness.now < began + 60_000, "after {} ms", harness.now - began);
    assert!(harness.totals().identity_holds());
}

#[test]
fn when_even_the_reserve_is_gone_acks_are_not_confirmed() {
    let (disk, mut harness) = opened(&small());
    disk.set_capacity(Some(disk.used()));
    let (accepted, why) = fill(&mut harness, "a", &[0, 1]);
    assert_eq!(why, Rejection::Unavailable);
    harness.sink.take();
    // Late events need room and free none.
    let mut number = 0;
    loop {
        number += 1;
        assert!(number < 10_000, "never full");
        let message = number % accepted + 1;
        let event = [Event::Arrive, Event::Click, Event::Clean][number as usize / accepted as usize % 3];
        harness.acks(vec![ack(0, number, &[(message, event), (999_999 + number, event)], harness.now)]);
        harness.commit().expect("the disk works");
        if !harness.sink.take().iter().any(|told| matches!(told, Told::Confirmed(_))) {
            break;
        }
    }
    assert!(harness.engine.stats().all().contains(&("acks_dropped", 1)));
    let before = harness.totals();
    drop(harness);
    disk.kill();
    disk.set_capacity(None);
    let mut harness = Harness::open(&disk, &small(), START);
    assert_eq!(harness.totals(), before, "nothing half-way was kept");
}

#[test]
fn trimming_makes_room_within_the_journals_maximum() {
    let options = StoreOptions { max_bytes: 12 * 16 * 1024, checkpoint_bytes: 20_000, ..small() };
    let (_disk, mut harness) = opened(&options);
    harness.deliver(batch("old", 5_000, &[3], START, HOUR)).expect("accepted");
    for n in 0..600 {
        let mut new = batch(&format!("b{n}"), n + 1, &[0, 1], harness.now, HOUR);
        new.body = vec![7; 500].into();
        harness.deliver(new).unwrap_or_else(|why| panic!("{n}: {why:?}"));
        for device in 0..2 {
            harness.acks(vec![ack(device, 1, &[(n + 1, Event::Arrive)], harness.now)]);
        }
        harness.ack_stream(harness.head());
        harness.settle().expect("the disk works");
    }
    assert_eq!(harness.pulled(3), [(5_000, false)]);
    let pulled = harness.pull(3);
    assert_eq!(harness.engine.read_body(&pulled[0].batch).expect("readable")[..], b"body of 5000"[..]);
}

#[test]
fn what_lives_long_does_not_keep_the_room_of_what_has_ended() {
    for reserve_segments in 1..=4 {
        check_long_lived(reserve_segments);
    }
}

/// Of fourteen segments five or six are live: the journal is never much larger than that, and goes on only if what is live is copied.
fn check_long_lived(reserve_segments: u32) {
    let max_bytes = 14 * 16 * 1024;
    let options = StoreOptions { max_bytes, reserve_segments, checkpoint_bytes: 20_000, ..small() };
    let (disk, mut harness) = opened(&options);
    let deliver = |harness: &mut Harness<SimDisk>, message, target, bytes| {
        let mut new = batch(&format!("b{message}"), message, &[target], harness.now, HOUR);
        new.body = vec![7; bytes].into();
        harness.deliver(new).is_ok()
    };
    let (mut message, mut refused) = (0, 0);
    for n in 0..600 {
        if n < 40 {
            assert!(deliver(&mut harness, 10_000 + n, 3, 2_000), "{n}");
        }
        message += 1;
        if deliver(&mut harness, message, 0, 1_000) {
            refused = 0;
            harness.arrive(0, message);
        } else {
            refused += 1;
            assert!(refused < 50, "stuck at {n}, with a reserve of {reserve_segments}");
        }
        harness.ack_stream(harness.head());
        harness.now += 1_000;
        harness.settle().expect("the disk works");
    }
    let expected: Vec<_> = (10_000..10_040).map(|message| (message, false)).collect();
    assert_eq!(harness.pulled(3), expected);
    let now = harness.now;
    drop(harness);
    disk.kill();
    let harness = Harness::open(&disk, &options, now);
    let expected: Vec<_> = expected.into_iter().map(|(message, _)| (message, true)).collect();
    assert_eq!(harness.pulled(3), expected, "in the order of acceptance");
}

#[test]
fn a_stream_that_nobody_reads_refuses_batches_at_its_soft_bound() {
    let (_disk, mut harness) = opened(&StoreOptions { stream_soft_bytes: 40_000, ..small() });
    harness.deliver(batch("first", 5_000, &[0], START, HOUR)).expect("accepted");
    harness.arrive(0, 5_000);
    assert_eq!(fill(&mut harness, "a", &[0, 1]).1, Rejection::StreamFull);
    let head = harness.head();
    harness.ack_stream(head);
    // The acknowledgement alone is enough.
    harness.deliver(batch("after", 10_001, &[2], START, HOUR)).expect("accepted again");
}

#[test]
fn a_devices_list_and_all_lists_have_a_maximum() {
    let options = StoreOptions { max_pending_per_device: 2, max_pending: 5, ..small() };
    let (_disk, mut harness) = opened(&options);
    for message in 1..=2 {
        harness.deliver(batch(&format!("b{message}"), message, &[0], START, HOUR)).expect("accepted");
    }
    let answer = harness.deliver(batch("b3", 3, &[0, 1], START, HOUR)).expect("accepted");
    assert_eq!(answer.refused, [(0, Refusal::OverQuota)]);
    let too_many = batch("b4", 4, &[1, 2, 3], START, HOUR);
    assert_eq!(harness.deliver(too_many.clone()), Err(Rejection::Exhausted));
    harness.arrive(0, 1);
    harness.deliver(too_many).expect("there is room again");
}

#[test]
fn one_device_too_many_is_refused() {
    let (_disk, mut harness) = opened(&StoreOptions { max_devices: 5, ..small() });
    for n in 4..6 {
        harness.see(n);
    }
    let mut known = seen(0);
    known.attributes = Attributes::whole(b"others".as_slice().into());
    harness.apply(Command::Seen { device: Box::new(known), session: session(0) }).expect("the disk works");
    harness.commit().expect("the disk works");
    assert_eq!(
        harness.sink.take(),
        [Told::Seen(session(4)), Told::Refused(session(5)), Told::Seen(session(0))]
    );
}

#[test]
fn finished_push_records_make_room_and_unfinished_ones_do_not() {
    let options = StoreOptions { parts: 1, max_messages: 3, ..small() };
    let (_disk, mut harness) = opened(&options);
    for message in 1..=3 {
        harness.deliver(batch(&format!("b{message}"), message, &[0], START, HOUR)).expect("accepted");
    }
    let fourth = batch("b4", 4, &[0], START, HOUR);
    assert_eq!(harness.deliver(fourth.clone()), Err(Rejection::Exhausted));
    harness.arrive(0, 2);
    harness.deliver(fourth).expect("the finished one went");
    assert!(harness.message(2, None).is_none() && harness.message(1, None).is_some());
    assert_eq!(harness.totals().arrived, 1, "it still counts");
}

#[test]
fn events_about_nothing_known_are_limited() {
    let (_disk, mut harness) = opened(&StoreOptions { unmatched_per_second: 2, ..small() });
    let events: Vec<(u64, Event)> = (900..905).map(|message| (message, Event::Click)).collect();
    harness.acks(vec![ack(0, 1, &events, START)]);
    harness.commit().expect("the disk works");
    assert_eq!(harness.sink.take().len(), 1, "it is confirmed all the same");
    assert_eq!(harness.stream(Seq(0)).len(), 2);
}

#[test]
fn batch_ids_are_forgotten_oldest_first_and_never_accepted_twice() {
    let options = StoreOptions { parts: 1, max_batch_ids: 3, ..small() };
    let (disk, mut harness) = opened(&options);
    let batches: Vec<_> = (1..=5).map(|n| batch(&format!("b{n}"), n, &[0], START + n, HOUR)).collect();
    harness.now = START + 10;
    for new in &batches {
        harness.deliver(new.clone()).expect("accepted");
    }
    for _ in 0..2 {
        for (n, new) in batches.iter().enumerate() {
            match harness.deliver(new.clone()) {
                Ok(again) => assert!(again.repeated && n >= 2, "{n}"),
                Err(why) => assert!(why == Rejection::TooOld && n < 2, "{n}: {why:?}"),
            }
        }
        drop(harness);
        disk.kill();
        harness = Harness::open(&disk, &options, START + 10);
    }
}

#[test]
fn a_slice_of_expiry_is_bounded_by_the_targets_it_looks_at_not_by_those_that_are_left() {
    // Three batches of 600 targets each, of which one is left.
    let (_disk, mut harness) = opened(&StoreOptions { segment_bytes: 4 * 1024 * 1024, ..small() });
    let targets: Vec<u32> = (0..600).collect();
    for &n in &targets {
        harness.see(n);
    }
    for message in 1..=3 {
        let new = batch(&format!("b{message}"), message, &targets, START, HOUR);
        assert_eq!(harness.deliver(new).expect("accepted").refused.len(), 0);
        let one = |&n: &u32| ack(n, 1, &[(message, Event::Arrive)], START);
        harness.acks(targets[1..].iter().map(one).collect());
        harness.commit().expect("the disk works");
    }
    harness.settle().expect("the disk works");
    assert_eq!(harness.figure("pending"), 3);
    harness.now += HOUR;
    while harness.figure("pending") == 3 {
        harness.commit().expect("the disk works");
        harness.engine.maintain(harness.now).expect("the disk works");
    }
    assert_eq!(harness.figure("pending"), 1, "1,024 targets are a slice: two of the batches");
    harness.settle().expect("the disk works");
    assert_eq!(harness.figure("pending"), 0);
}

#[test]
fn a_damaged_record_ends_what_is_pending_as_storage_when_it_expires() {
    let (disk, mut harness) = opened(&small());
    let mut new = batch("b1", 1, &[0, 1, 2], START, HOUR);
    new.body = b"the body to be damaged".as_slice().into();
    let seq = harness.deliver(new).expect("accepted").seq;
    harness.arrive(1, 1);
    harness.checkpoint().expect("the disk works");
    drop(harness);
    disk.kill();
    let name = "journal-0000000001.seg";
    let content = disk.content(name).expect("the segment");
    let at = content.windows(22).position(|bytes| bytes == b"the body to be damaged").expect("it is there");
    disk.flip(name, at as u64, 1).expect("flipped");
    let mut harness = Harness::open(&disk, &small(), START);
    assert_eq!(harness.pulled(0), [(1, true)], "the list is in the checkpoint");
    harness.now += HOUR;
    harness.settle().expect("the disk works");
    let mut told = harness.sink.take();
    told.sort_by_key(|told| format!("{told:?}"));
    let mut ends = [0, 2].map(|n| Told::Ended(device(n), seq, Failure::Storage));
    ends.sort_by_key(|told| format!("{told:?}"));
    assert_eq!(told, ends);
    let counts = harness.totals();
    assert!(counts.identity_holds() && counts.pending == 0, "{counts:?}");
}

#[test]
fn trimming_past_a_damaged_record_ends_its_entries_as_storage() {
    let options = StoreOptions { max_bytes: 12 * 16 * 1024, checkpoint_bytes: 20_000, ..small() };
    let (disk, mut harness) = opened(&options);
    let mut old = batch("old", 5_000, &[2, 3], START, HOUR);
    old.body = b"the body to be damaged".as_slice().into();
    let seq = harness.deliver(old).expect("accepted").seq;
    let name = "journal-0000000001.seg";
    let content = disk.content(name).expect("the segment");
    let at = content.windows(22).position(|bytes| bytes == b"the body to be damaged").expect("it is there");
    disk.flip(name, at as u64, 1).expect("flipped");
    for n in 0..300 {
        let mut new = batch(&format!("b{n}"), n + 1, &[0], harness.now, HOUR);
        new.body = vec![7; 500].into();
        harness.deliver(new).unwrap_or_else(|why| panic!("{n}: {why:?}"));
        harness.arrive(0, n + 1);
        harness.ack_stream(harness.head());
        harness.settle().expect("the disk works");
    }
    let told = harness.sink.take();
    for n in 2..4 {
        let ended = Told::Ended(device(n), seq, Failure::Storage);
        assert_eq!(told.iter().filter(|told| **told == ended).count(), 1, "device {n}");
    }
    assert!(harness.totals().identity_holds() && harness.totals().pending == 0);
}

#[test]
fn a_large_batch_ends_in_one_record() {
    let options = StoreOptions { segment_bytes: 1024 * 1024, ..small() };
    let disk = Arc::new(SimDisk::new());
    let mut harness = Harness::open(&disk, &options, START);
    let all: Vec<u32> = (0..5_000).collect();
    for &n in &all {
        harness.see(n);
    }
    harness.commit().expect("the disk works");
    let answer = harness.deliver(batch("b1", 1, &all, START, HOUR)).expect("accepted");
    harness.arrive(17, 1);
    harness.sink.take();
    harness.now += HOUR;
    harness.settle().expect("the disk works");
    assert_eq!(harness.sink.take().len(), 4_999);
    let events = harness.stream(answer.seq);
    assert_eq!(events.len(), 2);
    let StreamEvent::Mass(mass) = &events[1].1 else { panic!("{:?}", events[1]) };
    assert!(mass.count == 4_999 && mass.ordinals.iter().eq((0..5_000).filter(|ordinal| *ordinal != 17)));
}

#[test]
fn a_stream_without_events_holds_nothing_back_also_after_a_restart() {
    let streams = vec!["main".into(), "quiet".into()];
    let options = StoreOptions { max_bytes: 12 * 16 * 1024, checkpoint_bytes: 20_000, streams, ..small() };
    let (disk, mut harness) = opened(&options);
    for n in 0..900 {
        let mut new = batch(&format!("b{n}"), n + 1, &[0, 1], harness.now, HOUR);
        new.body = vec![7; 500].into();
        harness.deliver(new).unwrap_or_else(|why| panic!("{n}: {why:?}"));
        for device in 0..2 {
            harness.acks(vec![ack(device, 1, &[(n + 1, Event::Arrive)], harness.now)]);
        }
        harness.ack_stream(harness.head());
        harness.settle().expect("the disk works");
        if n == 450 {
            drop(harness);
            disk.kill();
            harness = Harness::open(&disk, &options, START);
        }
    }
    // Who never had anything of it misses nothing.
    let bounds = harness.engine.stream_bounds("quiet").expect("a stream");
    assert!(bounds.cursor > Seq(1_000) && bounds.oldest == Seq(0), "{bounds:?}");
}
