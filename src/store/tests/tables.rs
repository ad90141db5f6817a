//! What the engine keeps in the tables: over days, over starts, and when the files don't belong together.

use std::sync::Arc;

use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::common::{HOUR, opened};
use super::plan::START;
use super::support::{Harness, app, batch, small};
use crate::ids::Seq;
use crate::push::{Event, Rejection};
use crate::store::disk::Disk;
use crate::store::disk::sim::SimDisk;
use crate::store::engine::OpenError;
use crate::store::options::StoreOptions;
use crate::store::tables::{self, Table, TableKind, TablesError, Writes};
use crate::store::{Query, QueryAnswer};

const DAY: u64 = 24 * HOUR;

#[test]
fn each_event_counts_on_its_day_over_a_crash_too() {
    // START is 08:00 UTC; here the day began an hour ago.
    let options = StoreOptions { utc_offset_minutes: -7 * 60, ..small() };
    let (disk, mut harness) = opened(&options);
    harness.deliver(batch("b1", 1, &[0, 1, 9], START, 3 * DAY)).expect("accepted");
    harness.now += DAY;
    harness.arrive(0, 1);
    harness.settle().expect("the disk works");
    harness.arrive(1, 1);
    let before = harness.days(3);
    let figures = |days: &[crate::store::DayStats]| -> Vec<_> {
        days.iter().map(|day| (day.counts.accepted, day.counts.arrived, day.registered, day.active)).collect()
    };
    assert_eq!(figures(&before), [(0, 2, 0, 2), (2, 0, 4, 4), (0, 0, 0, 0)]);
    assert_eq!(before[1].counts.refused.iter().sum::<u64>(), 1);
    let now = harness.now;
    drop(harness);
    disk.crash(&mut SmallRng::seed_from_u64(1));
    let mut harness = Harness::open(&disk, &options, now);
    assert_eq!(harness.days(3), before);
    let other = crate::ids::AppKey::parse("other").expect("valid");
    let QueryAnswer::Stats(days) = harness.query(Query::Stats { app: other, days: 90 }) else {
        panic!("no answer");
    };
    assert!(days.len() == 30 && days.iter().all(|day| day.counts.targets == 0));
    assert_eq!(app().as_str(), "app");
}

#[test]
fn a_late_click_finds_a_push_record_that_left_memory() {
    let options = StoreOptions { message_cache_bytes: 1_000, ..small() };
    let (_disk, mut harness) = opened(&options);
    for message in 1..=200 {
        harness.deliver(batch(&format!("b{message}"), message, &[0], START, DAY)).expect("accepted");
        harness.arrive(0, message);
        harness.now += 500;
        harness.settle().expect("the disk works");
    }
    let figure = |harness: &Harness<SimDisk>, name| {
        let all = harness.engine.stats().all();
        all.into_iter().find(|figure| figure.0 == name).map_or(0, |figure| figure.1)
    };
    assert_eq!((figure(&harness, "messages"), figure(&harness, "table_reads")), (200, 0));
    let now = harness.now;
    harness.acks(vec![super::support::ack(0, 9, &[(3, Event::Click), (3, Event::Click)], now)]);
    harness.commit().expect("the disk works");
    let state = harness.message(3, Some(0)).expect("a push record");
    assert_eq!((state.counts.arrived, state.counts.clicked), (1, 1));
    assert!(state.on_device.is_some_and(|on| on.clicked));
    harness.settle().expect("the disk works");
    assert_eq!(figure(&harness, "table_reads"), 1, "read once, in memory since");
    // What matches nothing isn't looked for on the disk.
    harness.acks(vec![super::support::ack(0, 10, &[(999, Event::Click)], now)]);
    harness.settle().expect("the disk works");
    assert_eq!(figure(&harness, "table_reads"), 1);
}

#[test]
fn old_push_records_go_from_memory_and_tables_and_stay_in_the_totals() {
    let options = StoreOptions { message_cache_bytes: 500, record_kept_ms: 2 * DAY, ..small() };
    let (disk, mut harness) = opened(&options);
    for message in 1..=40 {
        harness.deliver(batch(&format!("b{message}"), message, &[0], harness.now, HOUR)).expect("accepted");
        harness.arrive(0, message);
        harness.now += DAY / 4;
        harness.settle().expect("the disk works");
    }
    assert!(harness.message(1, None).is_none() && harness.message(40, None).is_some());
    let before = harness.totals();
    assert_eq!(before.arrived, 40);
    let now = harness.now;
    drop(harness);
    let mut harness = Harness::open(&disk, &options, now);
    assert!(harness.report.messages < 20, "{}", harness.report.messages);
    assert_eq!(harness.totals(), before);
}

/// Enough that the journal's oldest segments are gone.
fn trimmed(options: &StoreOptions) -> (Arc<SimDisk>, Harness<SimDisk>) {
    let (disk, mut harness) = opened(options);
    for message in 1..=60 {
        let mut new = batch(&format!("b{message}"), message, &[0], harness.now, HOUR);
        new.body = vec![7; 2_000].into();
        harness.deliver(new).expect("accepted");
        harness.arrive(0, message);
        harness.ack_stream(harness.head());
        harness.now += 1_000;
        harness.settle().expect("the disk works");
    }
    (disk, harness)
}

#[test]
fn tables_that_are_lost_are_made_anew_while_the_journal_has_everything() {
    let (disk, mut harness) = opened(&small());
    harness.deliver(batch("b1", 1, &[0, 1], START, HOUR)).expect("accepted");
    harness.arrive(0, 1);
    harness.checkpoint().expect("written");
    let (totals, days) = (harness.totals(), harness.days(2));
    let state = harness.message(1, None);
    let now = harness.now;
    drop(harness);
    disk.remove("tables.log").expect("there");
    let mut harness = Harness::open(&disk, &small(), now);
    assert_eq!((harness.totals(), harness.days(2), harness.message(1, None)), (totals, days, state));
    harness.arrive(1, 1);
    assert_eq!(harness.totals().arrived, 2);
}

#[test]
fn tables_or_a_journal_of_another_time_are_refused_and_it_says_what_to_do() {
    let options = StoreOptions { checkpoint_bytes: 20_000, ..small() };
    let (disk, harness) = trimmed(&options);
    let now = harness.now;
    drop(harness);
    let missing = disk.fork();
    missing.remove("tables.log").expect("there");
    let error = Harness::try_open(&Arc::new(missing), &options, now).expect_err("the tables are missing");
    let applied = match &error {
        OpenError::Tables(TablesError::Behind { applied, .. }) => *applied,
        other => panic!("{other}"),
    };
    assert_eq!(applied, Seq(0));
    assert!(error.to_string().contains("Put back the file"), "{error}");
    // The other way round: only the tables are there.
    for name in disk.list().expect("readable") {
        if !name.starts_with("tables") {
            disk.remove(&name).expect("there");
        }
    }
    let error = Harness::try_open(&disk, &options, now).expect_err("the journal is missing");
    assert!(matches!(error, OpenError::Tables(TablesError::Ahead { .. })), "{error}");
}

#[test]
fn a_disk_without_space_for_the_tables_stops_trimming_and_nothing_else() {
    let options = StoreOptions { tables: TableKind::Library, ..small() };
    let (disk, mut harness) = opened(&options);
    harness.settle().expect("the disk works");
    disk.set_capacity(Some(disk.used()));
    for message in 1..=3 {
        let mut new = batch(&format!("b{message}"), message, &[0], harness.now, HOUR);
        new.job_key = "j".repeat(64).as_str().into();
        harness.deliver(new).expect("the journal's segment has room");
        harness.arrive(0, message);
        harness.now += 10_000;
        harness.settle().expect("a full disk is no failure");
    }
    disk.set_capacity(None);
    harness.now += 10_000;
    harness.settle().expect("the disk works");
    let (before, now) = (harness.totals(), harness.now);
    drop(harness);
    disk.crash(&mut SmallRng::seed_from_u64(3));
    assert_eq!(Harness::open(&disk, &options, now).totals(), before);
}

/// The tables of a data directory with something in each, and one row of which this is made.
fn with_row(table: Table, change: impl Fn(&mut Vec<u8>)) -> Result<Harness<SimDisk>, OpenError> {
    let (disk, mut harness) = opened(&small());
    harness.deliver(batch("b1", 1, &[0, 1], START, HOUR)).expect("accepted");
    harness.arrive(0, 1);
    harness.checkpoint().expect("written");
    drop(harness);
    let tables = tables::open(&disk, TableKind::Log, 0).expect("opens");
    let mut rows = Vec::new();
    tables.scan(table, &mut |key, row| rows.push((key.to_vec(), row.to_vec()))).expect("readable");
    let (key, mut row) = rows.pop().expect("a row");
    change(&mut row);
    tables.apply(&Writes::from([((table, key), Some(row))]), tables.applied()).expect("written");
    drop(tables);
    Harness::try_open(&disk, &small(), START)
}

#[test]
fn rows_of_a_newer_version_are_refused_and_malformed_ones_are_what_they_were() {
    for table in [Table::Single, Table::Messages, Table::Days, Table::Active] {
        with_row(table, |_| ()).expect("nothing is wrong");
        let error = with_row(table, |row| row[0] += 1).expect_err("newer");
        let OpenError::Tables(TablesError::Newer { table: found, version: 2, .. }) = &error else {
            panic!("{table:?}: {error}");
        };
        assert_eq!(*found, table);
        assert!(error.to_string().contains("written by a newer version"), "{error}");
        for damage in [0, 1] {
            let opened = with_row(table, |row| if damage == 0 { row.truncate(4) } else { row[0] = 0 });
            match (table, opened) {
                (Table::Messages, Ok(harness)) => assert_eq!(harness.report.left_out, 1),
                (_, Err(OpenError::Tables(TablesError::Damaged { .. }))) => {}
                (_, other) => panic!("{table:?}: {:?}", other.map(|harness| harness.report)),
            }
        }
    }
}

#[test]
fn without_space_for_the_tables_batches_are_refused_at_a_bound() {
    let options = StoreOptions { max_unwritten: 8, ..small() };
    let (disk, mut harness) = opened(&options);
    harness.settle().expect("the disk works");
    disk.set_capacity(Some(disk.used()));
    let mut accepted = 0;
    let refused = loop {
        harness.now += 10_000;
        match harness.deliver(batch(&format!("b{accepted}"), accepted + 1, &[0], harness.now, HOUR)) {
            Ok(_) => accepted += 1,
            Err(refused) => break refused,
        }
        harness.settle().expect("a full disk is no failure");
    };
    assert_eq!(refused, Rejection::Exhausted);
    assert!((3..=8).contains(&accepted), "{accepted}");
    disk.set_capacity(None);
    harness.now += 10_000;
    harness.settle().expect("the disk works");
    harness.deliver(batch("again", 99, &[0], harness.now, HOUR)).expect("accepted");
    assert_eq!(harness.totals().pending, accepted + 1);
}

#[test]
fn push_records_of_a_transaction_that_found_no_space_stay_in_memory() {
    let options = StoreOptions { message_cache_bytes: 100, ..small() };
    let (disk, mut harness) = opened(&options);
    for message in 1..=20 {
        harness.deliver(batch(&format!("b{message}"), message, &[0], START, HOUR)).expect("accepted");
    }
    // A transaction is over, and room in memory is still to be made.
    let writes = |harness: &Harness<SimDisk>| {
        harness
            .engine
            .stats()
            .all()
            .into_iter()
            .find(|figure| figure.0 == "table_writes")
            .map(|figure| figure.1)
    };
    while writes(&harness) != Some(1) {
        harness.commit().expect("the disk works");
        harness.engine.maintain(harness.now).expect("the disk works");
    }
    for message in 1..=5 {
        harness.arrive(0, message);
    }
    disk.set_capacity(Some(disk.used()));
    harness.now += 10_000;
    for _ in 0..100 {
        harness.commit().expect("the disk works");
        harness.engine.maintain(harness.now).expect("a full disk is no failure");
    }
    assert_eq!(writes(&harness), Some(1), "the second one found no space");
    for message in 1..=20 {
        let state = harness.message(message, None).unwrap_or_else(|| panic!("{message} is forgotten"));
        assert_eq!(state.counts.arrived, u64::from(message <= 5), "{message} is as it was before");
    }
    let totals = harness.totals();
    assert!(totals.identity_holds() && totals.pending == 15);
}
