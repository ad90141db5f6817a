//! What a start makes of the journal: which records it takes, which it leaves out, and which it says are missing.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::common::{HOUR, again, files, messages, opened};
use super::plan::START;
use super::support::{Harness, app, batch, device, seen, session, small};
use crate::binding::{Binding, Change};
use crate::ids::Seq;
use crate::push::Rejection;
use crate::store::disk::Disk;
use crate::store::disk::sim::SimDisk;
use crate::store::engine::OpenError;
use crate::store::journal::{Journal, JournalError, JournalOptions};
use crate::store::options::StoreOptions;
use crate::store::tables::TablesError;
use crate::store::{AppChange, Command};

fn suspend(harness: &mut Harness<SimDisk>, change: AppChange) {
    let (reply, mut answer) = oneshot::channel();
    harness.apply(Command::ControlApp { app: app(), change, reply }).expect("the disk works");
    harness.commit().expect("the disk works");
    assert!(answer.try_recv().expect("answered").is_some());
}

#[test]
fn what_an_operator_set_for_an_app_holds_after_a_start() {
    let (disk, mut harness) = opened(&small());
    suspend(&mut harness, AppChange::Suspend);
    for checkpoint in [false, true, false] {
        harness = again(&disk, harness, &small());
        let refused = harness.deliver(batch("b", 1, &[0], START, HOUR));
        assert_eq!(refused, Err(Rejection::Suspended));
        if checkpoint {
            harness.checkpoint().expect("the disk works");
        }
    }
    suspend(&mut harness, AppChange::Resume);
    harness = again(&disk, harness, &small());
    harness.deliver(batch("b", 1, &[0], START, HOUR)).expect("accepted");
}

/// A record that no program of this version writes.
pub(super) fn with_foreign_record(disk: &SimDisk, options: &StoreOptions, kind: u8, payload: &[u8]) {
    let layout = JournalOptions {
        segment_bytes: options.segment_bytes,
        reserve_segments: options.reserve_segments,
        salt: options.salt,
        ..JournalOptions::default()
    };
    let disk = Arc::new(disk.clone());
    let known = (Seq(0), Seq(0));
    let (mut journal, _) = Journal::recover(disk, layout, known, &mut |_| {}).expect("readable");
    journal.stage(kind, payload).expect("room");
    journal.commit(START).expect("the disk works");
}

#[test]
fn a_record_that_is_not_understood_is_left_out_and_said() {
    let (disk, mut harness) = opened(&small());
    harness.deliver(batch("b", 1, &[0, 1], START, HOUR)).expect("accepted");
    drop(harness);
    disk.kill();
    // A kind that there is not, and some whose content makes no sense.
    let kinds = [200, crate::store::record::RECEIPT, crate::store::record::GAP, crate::store::record::RECALL];
    for kind in kinds {
        with_foreign_record(&disk, &small(), kind, b"\xff");
        disk.kill();
    }
    let mut harness = Harness::open(&disk, &small(), START);
    assert_eq!(
        (harness.report.left_out, harness.figure("damaged")),
        (kinds.len() as u64, kinds.len() as u64)
    );
    harness.settle().expect("the disk works");
    assert_eq!((harness.pulled(0), harness.totals().pending), (vec![(1, true)], 2));
}

#[test]
fn a_start_whose_tables_cannot_be_read_is_none() {
    let (disk, mut harness) = opened(&small());
    harness.change(0, Change::Bind(Binding::Tag("t".into()))).expect("bound");
    harness.now += 10_000;
    harness.settle().expect("the disk works");
    let number = harness.state_of(0).expect("known").number;
    // Its row is needed at the start, for what is newer than the table.
    harness.change(0, Change::Bind(Binding::Tag("u".into()))).expect("bound");
    harness.engine.spoil_row(number, Some(b"\x02of a newer version".to_vec()));
    let now = harness.now;
    drop(harness);
    disk.kill();
    let error = Harness::try_open(&disk, &small(), now).expect_err("it can't be read");
    assert!(matches!(error, OpenError::Tables(TablesError::Newer { .. })), "{error}");
}

#[test]
fn what_is_missing_of_the_journal_is_said_of_the_journal() {
    let (disk, mut harness) = opened(&small());
    for n in 1..30 {
        let mut new = batch(&format!("b{n}"), n, &[0], START, HOUR);
        new.body = vec![7; 2_000].into();
        harness.deliver(new).expect("accepted");
    }
    harness.now += 10_000;
    harness.settle().expect("the disk works");
    let now = harness.now;
    let segments = files(&disk, "journal-");
    assert!(segments.len() > 3);
    // No checkpoint yet: everything is needed.
    let fork = Arc::new(disk.fork());
    fork.kill();
    fork.remove(&segments[0]).expect("there");
    let error = Harness::try_open(&fork, &small(), now).expect_err("its beginning is missing");
    assert!(matches!(error, OpenError::Journal(JournalError::Missing { .. })), "{error}");
}

#[test]
fn who_was_forgotten_stays_so_and_who_came_back_is_another_one() {
    let options = StoreOptions { forget_after_ms: 80_000, ..small() };
    let (disk, mut harness) = opened(&options);
    let forget = |harness: &mut Harness<SimDisk>| {
        for _ in 0..110 {
            harness.now += 1_000;
            harness.settle().expect("the disk works");
        }
    };
    // Everything before is in a checkpoint and in the tables; what follows is not.
    harness.checkpoint().expect("the disk works");
    forget(&mut harness);
    assert!((0..4).all(|n| harness.state_of(n).is_none()));
    for n in 0..2 {
        harness.see(n);
    }
    harness.commit().expect("the disk works");
    harness.now += 10_000;
    for checkpoint in [false, true, false] {
        harness = again(&disk, harness, &options);
        let numbers: Vec<_> = (0..4).map(|n| harness.state_of(n).map(|state| state.number)).collect();
        assert_eq!(numbers, [Some(4), Some(5), None, None], "{checkpoint}");
        harness.settle().expect("the disk works");
        harness.now += 10_000;
        harness.settle().expect("the disk works");
        assert_eq!(harness.engine.device_rows().expect("readable"), [4, 5].into(), "{checkpoint}");
        if checkpoint {
            harness.checkpoint().expect("the disk works");
        }
    }
}

/// The journal has it and the tables don't.
#[test]
fn who_was_forgotten_just_before_it_was_killed_leaves_no_row() {
    let options = StoreOptions { forget_after_ms: 80_000, ..small() };
    let (disk, mut harness) = opened(&options);
    harness.now += 10_000;
    harness.settle().expect("the disk works");
    assert_eq!(harness.engine.device_rows().expect("readable").len(), 4);
    while harness.figure("devices") == 4 {
        harness.now += 1_000;
        harness.engine.maintain(harness.now).expect("the disk works");
        harness.commit().expect("the disk works");
    }
    harness = again(&disk, harness, &options);
    let left: Vec<u32> = (0..4).filter_map(|n| harness.state_of(n).map(|state| state.number)).collect();
    assert!(left.len() < 4, "{left:?}");
    harness.now += 1_000;
    harness.settle().expect("the disk works");
    assert_eq!(harness.engine.device_rows().expect("readable").into_iter().collect::<Vec<_>>(), left);
}

/// A checkpoint may have it in one part and not in another.
#[test]
fn who_is_forgotten_between_two_slices_of_a_checkpoint_is_forgotten() {
    let options = StoreOptions { forget_after_ms: 80_000, checkpoint_bytes: 1, ..small() };
    let known = |harness: &mut Harness<SimDisk>| -> Vec<Option<u32>> {
        (0..4).map(|n| harness.state_of(n).map(|state| state.number)).collect()
    };
    for turns in 1..=5 {
        let (disk, mut harness) = opened(&options);
        for second in 0..125 {
            harness.now += 1_000;
            // Devices 0 and 1 are there, the others come back later.
            let now = harness.now;
            let active = Command::LastActive(vec![(device(0), now), (device(1), now)]);
            harness.apply(active).expect("the disk works");
            if second == 118 {
                harness.see(3);
            }
            for _ in 0..turns {
                harness.commit().expect("the disk works");
                harness.engine.maintain(harness.now).expect("the disk works");
            }
            let before = known(&mut harness);
            if second > 95 {
                let fork = Arc::new(disk.fork());
                fork.kill();
                let mut harness = Harness::open(&fork, &options, harness.now);
                assert_eq!(known(&mut harness), before, "{turns} turns a second, after {second} seconds");
            }
        }
        assert_eq!(known(&mut harness), [Some(0), Some(1), None, Some(4)], "{turns}");
    }
}

#[test]
fn a_device_that_nobody_knows_has_nothing_to_lose() {
    let (_disk, mut harness) = opened(&small());
    harness.acks(vec![super::support::ack(77, 3, &[(1, crate::push::Event::Arrive)], START)]);
    harness.commit().expect("the disk works");
    let confirm = crate::store::Confirm { session: session(77), number: 3 };
    assert_eq!(harness.sink.take(), [super::support::Told::Confirmed(confirm)]);
}

#[test]
fn a_switch_that_was_turned_off_stays_so() {
    let (disk, mut harness) = opened(&small());
    harness.change(0, Change::Push(false)).expect("taken");
    let mut off = seen(5);
    off.push_on = Some(false);
    harness.apply(Command::Seen { device: Box::new(off), session: session(5) }).expect("the disk works");
    harness.commit().expect("the disk works");
    for checkpoint in [false, true, false] {
        harness = again(&disk, harness, &small());
        let on = [0, 1, 5].map(|n| harness.state_of(n).expect("known").push_on);
        assert_eq!(on, [false, true, false], "{checkpoint}");
        if checkpoint {
            harness.checkpoint().expect("the disk works");
        }
    }
}

/// Of a batch some entries ended together, and others wait.
#[test]
fn what_a_newer_message_took_the_place_of_does_not_come_back() {
    let (disk, mut harness) = opened(&small());
    for (message, targets) in [(1, &[0, 1, 2, 3][..]), (2, &[0, 1])] {
        let mut new = batch(&format!("b{message}"), message, targets, START, HOUR);
        new.collapse_key = "weather".into();
        harness.deliver(new).expect("accepted");
    }
    for _ in 0..2 {
        assert_eq!([0, 1, 2, 3].map(|n| messages(&harness, n)), [vec![2], vec![2], vec![1], vec![1]]);
        assert_eq!(harness.totals().pending, 4);
        harness = again(&disk, harness, &small());
    }
}

/// The journal is read from where the tables end, and streams are as the checkpoint has them.
#[test]
fn a_stream_has_what_the_checkpoint_says_where_the_tables_are_older() {
    let (disk, mut harness) = opened(&small());
    for message in 1..=2 {
        harness.deliver(batch(&format!("b{message}"), message, &[0], START, HOUR)).expect("accepted");
        harness.arrive(0, message);
        if message == 1 {
            harness.ack_stream(harness.head());
        }
    }
    harness.checkpoint().expect("the disk works");
    let before = harness.stream_state("main").expect("known");
    assert!(before.unread && before.bounds.cursor > Seq(0));
    let now = harness.now;
    drop(harness);
    disk.kill();
    disk.remove("tables.log").expect("there");
    let harness = Harness::open(&disk, &small(), now);
    let after = harness.stream_state("main").expect("known");
    assert_eq!((after.unread, after.bounds.cursor), (true, before.bounds.cursor));
    assert_eq!(harness.stream(after.bounds.cursor).len(), 1);
}
