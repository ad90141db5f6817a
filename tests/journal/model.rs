//! Random runs of journal and checkpoints beside a simple model: a list of records, and what checkpoints promised.

use std::ops::ControlFlow;
use std::sync::Arc;

use mooring::ids::Seq;
use mooring::store::checkpoint::{CheckpointReader, CheckpointWriter, oldest_kept_covers};
use mooring::store::disk::crash::CrashTest;
use mooring::store::disk::sim::{Loss, SimDisk};
use mooring::store::journal::{Journal, JournalOptions, Place, Recovery};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

/// A record of the model.
pub(crate) type Content = (u8, Vec<u8>);

/// Steps of a run.
#[derive(Clone, Debug)]
enum Step {
    Stage(Content),
    Commit,
    Replenish,
    BeginCheckpoint,
    Slice(Vec<u8>),
    FinishCheckpoint,
    RemoveOldest,
    Restart,
}

/// A run of random steps, the same for the same seed.
#[derive(Debug)]
pub(crate) struct RandomRun {
    pub(crate) options: JournalOptions,
    steps: Vec<Step>,
}

/// What had been promised when the disk failed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Promised {
    /// Committed: sequence 1 is the first.
    pub(crate) committed: Vec<Content>,
    /// Staged when the disk failed: any number of them, from the first on, may have become durable.
    pub(crate) in_flight: Vec<Content>,
    covers: u64,
    oldest_kept: u64,
}

fn content(rng: &mut SmallRng) -> Content {
    let length = if rng.random_ratio(1, 8) { rng.random_range(200..500) } else { rng.random_range(0..60) };
    (rng.random(), (0..length).map(|_| rng.random()).collect())
}

pub(crate) fn seq(number: usize) -> Seq {
    Seq(number as u64)
}

/// What the slices of a checkpoint hold depends on what it covers and on their number, so that a wrong one is noticed.
fn slice(covers: u64, bytes: &[u8]) -> Vec<u8> {
    [&covers.to_le_bytes(), bytes].concat()
}

impl RandomRun {
    pub(crate) fn new(seed: u64, steps: usize) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let segment_bytes = *[640, 1024, 2048].choose(&mut rng).expect("not empty");
        let options = JournalOptions {
            segment_bytes,
            reserve_segments: rng.random_range(0..3),
            salt: seed,
            ..JournalOptions::default()
        };
        let step = |rng: &mut SmallRng| match rng.random_range(0..100) {
            0..40 => Step::Stage(content(rng)),
            40..62 => Step::Commit,
            62..74 => Step::Replenish,
            74..79 => Step::BeginCheckpoint,
            79..82 => Step::Slice((0..rng.random_range(0..700)).map(|_| rng.random()).collect()),
            82..89 => Step::FinishCheckpoint,
            89..96 => Step::RemoveOldest,
            _ => Step::Restart,
        };
        Self { options, steps: (0..steps).map(|_| step(&mut rng)).collect() }
    }

    /// The records after `after`, where they are, and the journal.
    #[allow(clippy::type_complexity)]
    pub(crate) fn recover(
        &self,
        disk: &SimDisk,
        after: u64,
    ) -> Result<(Journal<SimDisk>, Recovery, Vec<(Content, Place)>), String> {
        let mut found = Vec::new();
        let mut order = Ok(());
        let disk = Arc::new(disk.clone());
        let (journal, report) =
            Journal::recover(disk, self.options.clone(), (Seq(after), Seq(after)), &mut |record| {
                if record.seq.0 != after + found.len() as u64 + 1 {
                    order = Err(format!("sequence {} came as number {}", record.seq, found.len() + 1));
                }
                found.push(((record.kind, record.payload.to_vec()), record.place));
            })
            .map_err(|error| format!("recovery: {error}"))?;
        order?;
        Ok((journal, report, found))
    }

    fn step(
        &self,
        disk: &Arc<SimDisk>,
        step: &Step,
        state: &mut State,
        promised: &mut Promised,
    ) -> Result<(), String> {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        match step {
            Step::Stage((kind, payload)) => {
                // A full journal is no failure.
                if state.journal.stage(*kind, payload).is_ok() {
                    promised.in_flight.push((*kind, payload.clone()));
                }
            }
            Step::Commit => {
                state.time += 1;
                state.journal.commit(state.time).map_err(|error| text(&error))?;
                promised.committed.append(&mut promised.in_flight);
            }
            Step::Replenish => state.journal.replenish().map_err(|error| text(&error))?,
            Step::BeginCheckpoint => {
                let writer = CheckpointWriter::begin(Arc::clone(disk)).map_err(|error| text(&error))?;
                state.checkpoint = Some((writer, promised.committed.len() as u64));
            }
            Step::Slice(bytes) => {
                if let Some((writer, covers)) = &mut state.checkpoint {
                    writer.slice(&slice(*covers, bytes)).map_err(|error| text(&error))?;
                }
            }
            Step::FinishCheckpoint => {
                if let Some((writer, covers)) = state.checkpoint.take() {
                    let finished = writer.finish(Seq(covers)).map_err(|error| text(&error))?;
                    (promised.covers, promised.oldest_kept) = (covers, finished.oldest_kept.0);
                }
            }
            Step::RemoveOldest => {
                let oldest = state.journal.segments().first().copied();
                if oldest.is_some_and(|oldest| !oldest.active && oldest.last.0 <= promised.oldest_kept) {
                    // The segment that was active may be sealed and still be refused.
                    if state.journal.segments().len() > 1 {
                        state.journal.remove_oldest().map_err(|error| text(&error))?;
                    }
                }
            }
            Step::Restart => {
                promised.in_flight.clear();
                (state.journal, ..) = self.recover(disk, promised.covers)?;
                state.checkpoint = None;
            }
        }
        Ok(())
    }
}

struct State {
    journal: Journal<SimDisk>,
    checkpoint: Option<(CheckpointWriter<SimDisk>, u64)>,
    time: u64,
}

impl CrashTest for RandomRun {
    type Promised = Promised;

    fn run(&self, disk: &SimDisk) -> Promised {
        let mut promised = Promised::default();
        let Ok((journal, ..)) = self.recover(disk, 0) else { return promised };
        let mut state = State { journal, checkpoint: None, time: 0 };
        let disk = Arc::new(disk.clone());
        for step in &self.steps {
            if let Err(error) = self.step(&disk, step, &mut state, &mut promised) {
                assert!(disk.is_down(), "only a crash may end a run: {error}");
                break;
            }
        }
        promised
    }

    fn open(&self, disk: &SimDisk) {
        let covers = CheckpointReader::newest(Arc::new(disk.clone()));
        if let Ok(covers) = covers.map(|reader| reader.map_or(0, |reader| reader.covers().0))
            && let Err(error) = self.recover(disk, covers)
        {
            // Wrong findings show in the check; here only the crash is wanted.
            drop(error);
        }
    }

    fn check(&self, disk: &SimDisk, promised: &Promised, rng: &mut SmallRng) -> Result<(), String> {
        let (covers, oldest) = check_checkpoints(disk, promised)?;
        // From the older checkpoint too: it is kept for the case that the newer is damaged.
        let from_older = disk.fork();
        check_recovery(self, &from_older, oldest, promised)?;
        let mut promised = check_recovery(self, disk, covers, promised)?;
        for _ in 0..3 {
            promised = self.go_on(disk, covers, &promised, rng)?;
        }
        Ok(())
    }
}

/// The newest checkpoint is at least the one promised, and what it says is what was written. Answers what it and the older one cover.
fn check_checkpoints(disk: &SimDisk, promised: &Promised) -> Result<(u64, u64), String> {
    let disk = Arc::new(disk.clone());
    let newest = CheckpointReader::newest(Arc::clone(&disk)).map_err(|error| error.to_string())?;
    let covers = newest.as_ref().map_or(0, |reader| reader.covers().0);
    if covers < promised.covers {
        return Err(format!("the newest checkpoint covers {covers}, promised was {}", promised.covers));
    }
    if let Some(mut reader) = newest {
        while let Some(bytes) = reader.next_slice().map_err(|error| error.to_string())? {
            if !bytes.starts_with(&covers.to_le_bytes()) {
                return Err(format!("a slice of another checkpoint in the one that covers {covers}"));
            }
        }
    }
    let oldest = oldest_kept_covers(&disk).map_err(|error| error.to_string())?.0;
    if oldest < promised.oldest_kept {
        return Err(format!("the older checkpoint covers {oldest}, promised was {}", promised.oldest_kept));
    }
    Ok((covers, oldest))
}

/// Recovers and compares: what was committed is there, unaltered and in order, and behind it at most what was in flight. Answers the promises
/// that hold from here on.
fn check_recovery(
    run: &RandomRun,
    disk: &SimDisk,
    after: u64,
    promised: &Promised,
) -> Result<Promised, String> {
    let (journal, report, found) = run.recover(disk, after)?;
    if !report.corrupt.is_empty() {
        return Err(format!("a crash was taken for corruption: {:?}", report.corrupt));
    }
    let mut all = promised.committed.clone();
    all.extend_from_slice(&promised.in_flight);
    let count = after as usize + found.len();
    if journal.head() != seq(count) || count < promised.committed.len() || count > all.len() {
        let (head, committed) = (journal.head(), promised.committed.len());
        return Err(format!("{count} records, head {head}; committed {committed}, possible {}", all.len()));
    }
    let reader = journal.reader();
    for (index, (content, place)) in found.iter().enumerate() {
        let number = after as usize + index;
        if *content != all[number] {
            return Err(format!("record {} differs", number + 1));
        }
        let read = reader.read(*place).map_err(|error| format!("record {}: {error}", number + 1))?;
        if read != (seq(number + 1), content.0, content.1.clone()) {
            return Err(format!("record {} reads differently at its place", number + 1));
        }
    }
    let mut next = after as usize;
    let scanned = reader.scan(Seq(after), &mut None, &mut |record| {
        if record.seq == seq(next + 1) && (record.kind, record.payload.to_vec()) == all[next] {
            next += 1;
        }
        ControlFlow::Continue(())
    });
    scanned.map_err(|error| format!("scan: {error}"))?;
    if next != count {
        return Err(format!("a scan went astray behind record {next} of {count}"));
    }
    all.truncate(count);
    Ok(Promised { committed: all, in_flight: Vec::new(), ..promised.clone() })
}

impl RandomRun {
    /// Another start, some commits that may be interrupted, another crash, another comparison.
    fn go_on(
        &self,
        disk: &SimDisk,
        covers: u64,
        promised: &Promised,
        rng: &mut SmallRng,
    ) -> Result<Promised, String> {
        let (mut journal, ..) = self.recover(disk, covers)?;
        let mut promised = promised.clone();
        if rng.random() {
            disk.crash_at(disk.operations() + rng.random_range(0..6));
        }
        'commits: for _ in 0..rng.random_range(0..3) {
            for _ in 0..rng.random_range(1..4) {
                let (kind, payload) = content(rng);
                if journal.stage(kind, &payload).is_ok() {
                    promised.in_flight.push((kind, payload));
                }
            }
            match journal.commit(1_000) {
                Ok(_) => promised.committed.append(&mut promised.in_flight),
                Err(_) if disk.is_down() => break 'commits,
                Err(error) => return Err(format!("commit after a recovery: {error}")),
            }
        }
        match rng.random_range(0..4) {
            0 => disk.kill(),
            1 => disk.crash_with(Loss::All, rng),
            _ => disk.crash_with(Loss::Some, rng),
        }
        check_recovery(self, disk, covers, &promised)
    }
}
