//! Damage below what was durable: what it took ends as `storage`, once, in the sums and for the router; the rest goes on.

use std::ops::ControlFlow;
use std::sync::Arc;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::common::{HOUR, again, opened};
use super::plan::{MESSAGES, Promised, START, plan};
use super::stream_damage::{flip, places};
use super::support::{Harness, batch, of_account, small};
use crate::binding::{Binding, Change};
use crate::push::{Counts, Failure, StreamEvent, TargetState};
use crate::store::disk::Disk;
use crate::store::disk::sim::SimDisk;
use crate::store::journal::Place;
use crate::store::options::StoreOptions;
use crate::store::record;

fn segment(id: u32) -> String {
    format!("journal-{id:010}.seg")
}

/// Everything is in the tables.
fn into_tables(harness: &mut Harness<SimDisk>) {
    harness.now += 10_000;
    harness.settle().expect("the disk works");
}

fn place_of(harness: &Harness<SimDisk>, n: u32, message: u64) -> Place {
    let pulled = harness.pull(n);
    let entry = pulled.iter().find(|pulled| pulled.batch.message.0 == message).expect("pending");
    entry.batch.place()
}

fn storage(counts: &Counts) -> u64 {
    counts.failed[Failure::Storage as usize - 1]
}

/// The tables know of the batch, and not of the end.
#[test]
fn what_had_ended_before_its_batch_was_lost_has_no_other_end() {
    let (disk, mut harness) = opened(&small());
    harness.deliver(batch("b1", 1, &[0, 1, 2], START, HOUR)).expect("accepted");
    harness.deliver(batch("b2", 2, &[0, 1], START, HOUR)).expect("accepted");
    into_tables(&mut harness);
    let place = place_of(&harness, 1, 1);
    harness.arrive(0, 1);
    disk.flip(&segment(place.segment), u64::from(place.offset) + 40, 4).expect("there");
    harness = again(&disk, harness, &small());
    assert_eq!(harness.report.journal.corrupt.len(), 1);
    harness.settle().expect("the disk works");
    let counts = harness.message(1, None).expect("a record").counts;
    assert_eq!((counts.arrived, storage(&counts), counts.pending), (1, 2, 0), "{counts:?}");
    let totals = harness.totals();
    assert!(totals.identity_holds() && totals.arrived == 1 && totals.pending == 2, "{totals:?}");
}

#[test]
fn what_a_damaged_batch_record_took_ends_as_storage_once() {
    // With push records in memory, and without.
    for message_cache_bytes in [1_000_000, 100] {
        let options = StoreOptions { message_cache_bytes, ..small() };
        let (disk, mut harness) = opened(&options);
        harness.deliver(batch("b1", 1, &[0, 1, 2], START, HOUR)).expect("accepted");
        harness.deliver(batch("b2", 2, &[0, 1], START, HOUR)).expect("accepted");
        harness.deliver(batch("b3", 1, &[3], START, HOUR)).expect("accepted");
        harness.arrive(0, 1);
        into_tables(&mut harness);
        let place = place_of(&harness, 1, 1);
        let lost_at = harness.pull(1)[0].batch.seq;
        disk.flip(&segment(place.segment), u64::from(place.offset) + 40, 4).expect("there");
        let before = harness.head();
        harness = again(&disk, harness, &options);
        assert_eq!(harness.report.journal.corrupt.len(), 1);
        assert_eq!(harness.message(1, None).expect("a record").counts.pending, 3, "as the tables say");
        harness.settle().expect("the disk works");
        for start in 0..3 {
            let lost = harness.message(1, Some(1)).expect("a record");
            let counts = lost.counts;
            assert!(counts.identity_holds(), "start {start}: {counts:?}");
            assert_eq!((counts.arrived, storage(&counts), counts.pending), (1, 2, 1), "start {start}");
            let state = lost.on_device.expect("asked for").state;
            assert_eq!(state, TargetState::Failed(Failure::Storage));
            let totals = harness.totals();
            assert!(totals.identity_holds() && totals.pending == 3 && storage(&totals) == 2, "{totals:?}");
            let told = harness.stream(before);
            let [(_, StreamEvent::Gap(gap)), (_, StreamEvent::Mass(mass))] = &told[..] else {
                panic!("start {start}: {told:?}")
            };
            assert_eq!((gap.first, gap.last), (lost_at, lost_at), "said once");
            assert_eq!((mass.reason, mass.count, mass.message.0), (Failure::Storage, 2, 1));
            assert_eq!((mass.batch.as_str(), &*mass.job_key, mass.ordinals.len()), ("", "job", 0));
            assert!(harness.pulled(1) == [(2, true)] && harness.pulled(3) == [(1, true)]);
            if start == 1 {
                harness.checkpoint().expect("the disk works");
            }
            harness = again(&disk, harness, &options);
            harness.settle().expect("the disk works");
        }
        // It can be sent again.
        let answer = harness.deliver(batch("b4", 1, &[1], harness.now, HOUR)).expect("accepted");
        assert_eq!(answer.accepted, 1);
    }
}

/// A device whose record is lost has no list any more, though it may be connected: what batches count for it would wait until it expires.
#[test]
fn what_no_list_has_ends_at_the_start_that_finds_the_damage() {
    let (disk, mut harness) = opened(&small());
    for message in 1..=2 {
        harness.deliver(batch(&format!("b{message}"), message, &[0, 1], START, HOUR)).expect("accepted");
    }
    flip(&disk, places(&harness, record::DEVICE)[0].1);
    for start in 0..2 {
        harness = again(&disk, harness, &small());
        harness.see(0);
        harness.settle().expect("the disk works");
        let totals = harness.totals();
        assert!(totals.identity_holds(), "{start}: {totals:?}");
        assert_eq!((storage(&totals), totals.pending), (2, 2), "{start}");
        assert_eq!((harness.pulled(0), harness.pulled(1)), (vec![], vec![(1, true), (2, true)]), "{start}");
    }
}

#[test]
fn a_damaged_last_group_that_the_tables_reflect_is_no_torn_tail() {
    let (disk, mut harness) = opened(&small());
    harness.deliver(batch("b1", 1, &[0], START, HOUR)).expect("accepted");
    let last = harness.deliver(batch("b2", 2, &[0, 1], START, HOUR)).expect("accepted");
    into_tables(&mut harness);
    assert_eq!(harness.head(), last.seq);
    let (place, now) = (place_of(&harness, 1, 2), harness.now);
    drop(harness);
    disk.kill();
    // The group's header, the record's, and its payload.
    for offset in place.offset - 40..place.offset + 200 {
        let disk = Arc::new(disk.fork());
        disk.flip(&segment(place.segment), u64::from(offset), 1 << (offset % 8)).expect("there");
        let mut harness = Harness::open(&disk, &small(), now);
        if harness.report.journal.corrupt.is_empty() {
            assert!(offset > place.offset + 150 && harness.pulled(1) == [(2, true)], "{offset}: padding");
            continue;
        }
        harness.settle().expect("the disk works");
        let counts = harness.message(2, None).expect("a record").counts;
        assert_eq!((storage(&counts), counts.pending, counts.accepted), (2, 0, 2), "{offset}");
        assert!(harness.totals().identity_holds() && harness.totals().pending == 1);
        let next = harness.deliver(batch("b3", 3, &[1], now, HOUR)).expect("accepted");
        assert!(next.seq > last.seq, "no sequence is given twice");
        let mut harness = again(&disk, harness, &small());
        harness.settle().expect("the disk works");
        assert_eq!((harness.pulled(0), harness.pulled(1)), (vec![(1, true)], vec![(3, true)]));
        assert_eq!(storage(&harness.totals()), 2, "once");
    }
}

#[test]
fn where_the_ends_of_a_former_account_are_damaged_nobody_else_gets_what_was_its_own() {
    let (disk, mut harness) = opened(&small());
    harness.change(0, Change::Bind(Binding::Account("a".into()))).expect("bound");
    harness.deliver(of_account("a", batch("b1", 1, &[0], START, HOUR))).expect("accepted");
    harness.deliver(batch("b2", 2, &[0], START, HOUR)).expect("accepted");
    let before = harness.head();
    harness.change(0, Change::Bind(Binding::Account("b".into()))).expect("bound");
    let change = harness.head();
    harness.deliver(batch("b3", 3, &[0], START, HOUR)).expect("accepted");
    // The change is the end of the entry, that the one account goes, and that the other comes. Only the last is left.
    let mut places = Vec::new();
    let scanned = harness.engine.shared().reader.scan(before, &mut None, &mut |record| {
        if record.seq < change {
            places.push(record.place);
        }
        ControlFlow::Continue(())
    });
    scanned.expect("readable");
    assert_eq!(places.len(), 2);
    for place in places {
        disk.flip(&segment(place.segment), u64::from(place.offset) + 20, 1).expect("there");
    }
    harness = again(&disk, harness, &small());
    let bindings = harness.state_of(0).expect("known").bindings.expect("some");
    assert_eq!(bindings.account.as_deref(), Some("b"));
    assert_eq!(harness.pulled(0), [(2, true), (3, true)]);
    harness.now += 2 * HOUR;
    harness.settle().expect("the disk works");
    let totals = harness.totals();
    assert!(totals.identity_holds() && totals.pending == 0 && storage(&totals) == 1, "{totals:?}");
}

/// One flipped bit anywhere in the journal after a random run: nothing stays pending for ever, and nothing is counted twice.
#[test]
fn after_any_damage_every_message_comes_to_its_end() {
    let mut lost = 0;
    for seed in 1..=6 {
        let options = StoreOptions { message_cache_bytes: 400, segment_bytes: 4 * 1024, ..small() };
        let disk = Arc::new(SimDisk::new());
        let mut promised = Promised::new();
        let mut harness = Harness::open(&disk, &options, START);
        for step in plan(seed, 150) {
            promised.step(&mut harness, &step).expect("the disk works");
        }
        into_tables(&mut harness);
        let (accepted, now) = (harness.totals().accepted, harness.now);
        drop(harness);
        disk.kill();
        let mut rng = SmallRng::seed_from_u64(seed);
        let names: Vec<_> =
            disk.list().expect("readable").into_iter().filter(|name| name.ends_with("seg")).collect();
        for _ in 0..60 {
            let disk = Arc::new(disk.fork());
            let name = &names[rng.random_range(0..names.len())];
            let (offset, bit) = (rng.random_range(0..4 * 1024), 1 << rng.random_range(0..8));
            disk.flip(name, offset, bit).expect("there");
            let place = format!("seed {seed}, {name} at {offset}, bit {bit}");
            let mut harness =
                Harness::try_open(&disk, &options, now).unwrap_or_else(|error| panic!("{place}: {error}"));
            harness.settle().expect("the disk works");
            lost += storage(&harness.totals());
            harness.now += 100 * HOUR;
            harness.settle().expect("the disk works");
            let totals = harness.totals();
            assert!(totals.identity_holds() && totals.pending == 0, "{place}: {totals:?}");
            assert_eq!(totals.accepted, accepted, "{place}");
            for message in 1..=MESSAGES {
                let Some(state) = harness.message(message, None) else { continue };
                assert!(
                    state.counts.identity_holds() && state.counts.pending == 0,
                    "{place}: {message} {state:?}"
                );
            }
            let mut harness = again(&disk, harness, &options);
            harness.settle().expect("the disk works");
            assert_eq!(harness.totals(), totals, "{place}");
            let bounds = harness.engine.stream_bounds("main").expect("a stream");
            harness.try_stream(bounds.oldest).expect("readable");
        }
    }
    assert!(lost > 10, "damage took something: {lost}");
}
