//! Crashes at every operation of random runs.

use std::sync::Arc;

use mooring::ids::{DigestKey, Seq};
use mooring::store::disk::SyncPoint;
use mooring::store::disk::crash::{CrashTest, everywhere};
use mooring::store::disk::format::Format;
use mooring::store::disk::sim::{Loss, SimDisk};
use mooring::store::journal::{Journal, JournalError};
use rand::SeedableRng;
use rand::rngs::SmallRng;

use crate::model::RandomRun;

/// Steps of each run, and runs.
const STEPS: usize = 90;
const SEEDS: u64 = 24;

#[test]
fn committed_records_survive_a_crash_at_every_operation() {
    let mut boundaries = 0;
    for seed in 0..SEEDS {
        let disk = SimDisk::new();
        if seed % 3 == 0 {
            disk.set_capacity(Some(12 * 1024));
        }
        match everywhere(seed, &disk, &RandomRun::new(seed, STEPS)) {
            Ok(count) => boundaries += count,
            Err(violation) => panic!("{violation}"),
        }
    }
    println!("seeds 0 to {}: {boundaries} boundaries", SEEDS - 1);
    assert!(boundaries > 500, "the runs are too short to prove anything: {boundaries}");
}

/// The key of a data directory, once used, is the key for good.
pub(crate) struct KeyRun;

impl CrashTest for KeyRun {
    type Promised = Option<[u8; 32]>;

    fn run(&self, disk: &SimDisk) -> Self::Promised {
        let first = Format::open(disk, DigestKey([1; 32])).ok()?;
        match Format::open(disk, DigestKey([2; 32])) {
            Ok(again) => assert_eq!(again.digest_key.0, first.digest_key.0),
            Err(error) => assert!(disk.is_down(), "{error}"),
        }
        Some(first.digest_key.0)
    }

    fn open(&self, disk: &SimDisk) {
        drop(Format::open(disk, DigestKey([3; 32])));
    }

    fn check(&self, disk: &SimDisk, promised: &Self::Promised, rng: &mut SmallRng) -> Result<(), String> {
        let open = |byte| Format::open(disk, DigestKey([byte; 32])).map_err(|error| error.to_string());
        let first = open(4)?.digest_key.0;
        if promised.is_some_and(|promised| promised != first) {
            return Err("the key in use is gone".to_owned());
        }
        disk.crash_with(Loss::All, rng);
        let same = open(5)?.digest_key.0 == first;
        same.then_some(()).ok_or_else(|| "the key in use is gone".to_owned())
    }
}

#[test]
fn the_key_in_use_survives_a_crash_at_every_operation() {
    for seed in 0..20 {
        if let Err(violation) = everywhere(seed, &SimDisk::new(), &KeyRun) {
            panic!("{violation}");
        }
    }
}

#[test]
fn what_a_failed_sync_dropped_is_never_taken_for_durable() {
    for seed in 0..40 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let run = RandomRun::new(seed, 0);
        let disk = SimDisk::new();
        let (mut journal, ..) = run.recover(&disk, 0).expect("a new journal");
        journal.stage(1, b"durable").expect("fits");
        journal.commit(1).expect("a working disk");
        journal.stage(2, b"dropped").expect("fits");
        disk.fail_next_sync(SyncPoint::GroupCommit);
        assert!(matches!(journal.commit(2), Err(JournalError::Io { .. })));
        assert_eq!(journal.head(), Seq(1), "nothing of it is visible");
        assert!(matches!(journal.commit(3), Err(JournalError::Poisoned)));
        assert!(matches!(journal.stage(3, b""), Err(JournalError::Poisoned)));
        drop(journal);

        // The process goes, its pages stay: the next one may still read the record, and then has to make it durable.
        disk.kill();
        let (journal, _, found) = run.recover(&disk, 0).expect("recovers");
        drop(journal);
        disk.crash_with(Loss::All, &mut rng);
        let (_, _, again) = run.recover(&disk, 0).expect("recovers");
        assert_eq!(found, again, "seed {seed}");
    }
}

#[test]
fn a_restart_without_a_crash_goes_on_in_the_same_segment() {
    let run = RandomRun::new(1, 0);
    let disk = SimDisk::new();
    for round in 0..20u64 {
        let (mut journal, report, found) = run.recover(&disk, 0).expect("recovers");
        assert_eq!((found.len() as u64, report.torn_bytes), (round, 0));
        assert!(journal.segments().len() <= 3, "restarts don't use up files");
        journal.stage(0, b"x").expect("fits");
        journal.commit(round).expect("works");
    }
}

#[test]
fn a_scan_goes_on_where_it_stopped_and_sees_what_is_committed_meanwhile() {
    let mut options = RandomRun::new(1, 0).options;
    (options.segment_bytes, options.reserve_segments) = (1024, 2);
    let (mut journal, _) =
        Journal::recover(Arc::new(SimDisk::new()), options, (Seq(0), Seq(0)), &mut |_| {}).expect("new");
    let reader = journal.reader();
    let (mut position, mut seen) = (None, 0u64);
    for round in 0..200u64 {
        for _ in 0..3 {
            journal.replenish().expect("works");
            journal.stage(7, &round.to_le_bytes()).expect("fits");
        }
        journal.commit(round).expect("works");
        let mut left = 2 + round % 3;
        reader
            .scan(Seq(seen), &mut position, &mut |record| {
                seen += 1;
                assert_eq!((record.seq, record.group_time), (Seq(seen), (seen - 1) / 3));
                left -= 1;
                if left == 0 { std::ops::ControlFlow::Break(()) } else { std::ops::ControlFlow::Continue(()) }
            })
            .expect("readable");
    }
    while journal.segments().len() > 1 {
        journal.remove_oldest().expect("not the active one");
    }
    assert!(reader.scan(Seq(0), &mut None, &mut |_| std::ops::ControlFlow::Continue(())).is_err(), "gone");
}
