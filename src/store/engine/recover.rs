//! The start: the newest checkpoint, then the journal behind it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, RwLock};

use tokio::sync::watch;

use super::load::Loaded;
use super::replay::Replay;
use super::streams::HISTORY_BYTES;
use super::tables::{State, read_index};
use super::{Engine, IsConnected, Shared, StoreFailure, acks, checkpoint, forget, memory, trim};
use crate::ids::{HistoryId, Seq};
use crate::store::CommitSink;
use crate::store::body_cache::BodyCache;
use crate::store::checkpoint::{CheckpointError, CheckpointReader, oldest_kept_covers};
use crate::store::codec::Malformed;
use crate::store::disk::Disk;
use crate::store::journal::{Journal, JournalError, JournalOptions, Recovery};
use crate::store::ledger::Ledger;
use crate::store::options::StoreOptions;
use crate::store::recalls::Recalls;
use crate::store::stats::StoreStats;
use crate::store::stream::Streams;
use crate::store::stream::saved::{Change, SavedStreams};
use crate::store::tables::{self, TablesError};

/// Why a store can't be opened. Nothing was changed that a program that can open it would miss.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The journal can't be read or continued.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The checkpoints can't be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A checkpoint passes its checksums and isn't understood.
    #[error("the newest checkpoint isn't of this version: {0}")]
    Malformed(#[from] Malformed),
    /// The tables can't be used.
    #[error(transparent)]
    Tables(#[from] TablesError),
    /// There is no room to write which streams there are, and which app maps to which.
    #[error(
        "the disk is full, and the configuration changes streams, which has to be written first: make room on the disk of the data directory, \
         or start with the streams as they were"
    )]
    Full,
    /// A thread couldn't be started.
    #[error("no thread for the store: {0}")]
    Thread(#[from] std::io::Error),
}

impl From<StoreFailure> for OpenError {
    fn from(failure: StoreFailure) -> Self {
        match failure {
            StoreFailure::Journal(error) => error.into(),
            StoreFailure::Tables(error) => error.into(),
        }
    }
}

fn layout(options: &StoreOptions) -> JournalOptions {
    JournalOptions {
        segment_bytes: options.segment_bytes,
        reserve_segments: options.reserve_segments,
        max_bytes: options.max_bytes,
        salt: options.salt,
    }
}

impl Replay<'_> {
    /// Through the journal.
    fn run<D: Disk>(&mut self, disk: &Arc<D>) -> Result<(Journal<D>, Recovery), OpenError> {
        let (covers, applied) = (self.covers, self.tables.applied());
        // Tables that hold less than the checkpoint were made anew, or are another time's: the journal may still have what they lack. And what
        // either of them holds was durable in the journal before.
        let known = (covers.min(applied), covers.max(applied));
        let layout = layout(self.options);
        Journal::recover(disk.clone(), layout, known, &mut |record| self.apply(record))
            .map_err(apart(applied, covers))
    }
}

/// What it means for the tables that the journal can't be replayed from where they end, or doesn't reach that far. Everything that they
/// hold was durable in the journal before.
fn apart(applied: Seq, covers: Seq) -> impl FnOnce(JournalError) -> OpenError {
    move |error| match error {
        JournalError::Short { head, durable } if durable == applied => {
            TablesError::Ahead { applied, head }.into()
        }
        JournalError::Missing { to, .. } if applied < covers => {
            TablesError::Behind { applied, oldest: to }.into()
        }
        error => error.into(),
    }
}

/// What a start writes: what damage and the configuration change in the streams, and its history. That comes back if there is no room for its record: nothing else is
/// written then either, until there is.
fn begin<D: Disk>(
    options: &StoreOptions,
    journal: &Journal<D>,
    recovery: &Recovery,
    streams: &mut SavedStreams,
    covers: Seq,
) -> (Vec<Change>, Option<HistoryId>) {
    let lost = recovery.corrupt.iter().filter_map(|damage| damage.lost);
    if let Some(first) = lost.filter(|(_, last)| *last > covers).map(|(first, _)| first).min() {
        streams.reclaim(options, first, journal.next_seq());
    }
    if !recovery.corrupt.is_empty() {
        streams.cover_lost(Seq(journal.reader().oldest().0.saturating_sub(1)));
    }
    let history = options.history.unwrap_or_else(|| HistoryId::random(&mut rand::rng()));
    let has_room = journal.fits(HISTORY_BYTES, true);
    let begins = has_room.then_some(history);
    let changes = streams.configure(options, journal.reader().oldest(), journal.next_seq(), begins);
    (changes, (!has_room).then_some(history))
}

/// The streams, which tell their readers where records were lost that no checkpoint has seen.
fn with_losses(streams: Streams, recovery: &Recovery, covers: Seq) -> Streams {
    let ranges = recovery.corrupt.iter().filter_map(|damage| damage.lost);
    ranges.filter(|(_, last)| *last > covers).for_each(|(_, last)| streams.note_lost(last));
    streams
}

fn bytes_behind<D: Disk>(journal: &Journal<D>, covers: Seq) -> u64 {
    let since = journal.segments().into_iter().filter(|segment| segment.last > covers);
    since.map(|segment| u64::from(segment.used)).sum()
}

/// What a start found.
#[derive(Clone, Debug)]
pub struct OpenReport {
    /// Of the journal.
    pub journal: Recovery,
    /// What the checkpoint that it began with covers; 0: there was none.
    pub checkpoint: Seq,
    /// Newer checkpoints that were damaged.
    pub damaged_checkpoints: Vec<String>,
    /// Records or entries that had to be left out: they passed their checksums and made no sense, or what they rest on is damaged.
    pub left_out: u64,
    /// Devices known.
    pub devices: u64,
    /// Entries pending.
    pub pending: u64,
    /// Push records.
    pub messages: u64,
}

/// What the newest whole checkpoint holds and covers, and which ones were damaged.
fn load_newest<D: Disk>(
    disk: &Arc<D>,
    options: &StoreOptions,
) -> Result<(Loaded, Seq, Vec<String>), OpenError> {
    let Some(mut reader) = CheckpointReader::newest(disk.clone())? else {
        return Ok((Loaded::empty(options.parts, options), Seq(0), Vec::new()));
    };
    let loaded = Loaded::read(&mut reader, options)?;
    Ok((loaded, reader.covers(), reader.damaged().to_vec()))
}

impl<D: Disk> Engine<D> {
    /// Recovers what the disk holds; all that is pending goes out as redelivered from now on.
    pub fn open(
        disk: Arc<D>,
        options: &StoreOptions,
        sink: Box<dyn CommitSink>,
        is_connected: IsConnected,
    ) -> Result<(Self, OpenReport), OpenError> {
        let (loaded, covers, damaged_checkpoints) = load_newest(&disk, options)?;
        let oldest_kept = oldest_kept_covers(&disk)?;
        let tables = tables::open(&disk, options.tables, options.table_cache_bytes)?;
        let ledger = Ledger::read(&*tables, options.utc_offset_minutes)?;
        let bodies = BodyCache::new(options.body_cache_bytes);
        let mut replay = Replay {
            malformed: read_index(&*tables, &loaded.index)?,
            loaded,
            options,
            bodies: &bodies,
            tables: &*tables,
            ledger,
            failed: None,
            covers,
            masses: std::collections::HashMap::default(),
            told_lost: Vec::new(),
            newest: Seq(0),
            skipped: Vec::new(),
        };
        let (journal, recovery) = replay.run(&disk)?;
        replay.check_tables()?;
        replay.tidy();
        let left_out = replay.left_out();
        let lost = replay.lost(&recovery);
        let ledger = replay.ledger;
        let Loaded { index, next_number, mut streams, controls, apps, .. } = replay.loaded;
        index.set_committed(recovery.head);
        let (changes, history) = begin(options, &journal, &recovery, &mut streams, covers);
        let streams = with_losses(Streams::new(streams, &options.streams), &recovery, covers);
        let shared = Shared {
            index,
            bodies,
            streams,
            controls: RwLock::new(controls.clone()),
            recalls: Recalls::default(),
            opened_at: recovery.last_time,
            report_ms: forget::report_ms(options.forget_after_ms),
            stats: StoreStats::default(),
            reader: journal.reader(),
            head: watch::Sender::new(recovery.head),
        };
        StoreStats::set(&shared.stats.damaged, left_out);
        let mut engine = Self {
            memory: memory::Memory::new(options, shared.index.len()),
            disk,
            options: options.clone(),
            checkpoints: checkpoint::State::new(bytes_behind(&journal, covers), covers, oldest_kept),
            journal,
            shared: Arc::new(shared),
            sink,
            is_connected,
            effects: Vec::new(),
            scratch: Vec::new(),
            expiry: BTreeSet::new(),
            expiry_retry_at: 0,
            replenish_at: 0,
            next_number,
            devices: 0,
            revoked: 0,
            messages: 0,
            pending: 0,
            live_bytes: 0,
            live_in: BTreeMap::new(),
            apps,
            unmatched: acks::Limiter::default(),
            duty: 0,
            ledger,
            tables: State::new(tables),
            trim: trim::State::default(),
            controls,
            gap: None,
            forget: forget::State::new(options.forget_after_ms),
            damaged: VecDeque::new(),
            lost,
            recalling: VecDeque::new(),
            recall_retry_at: 0,
            recalls: 0,
            recalls_full_until: 0,
            history,
        };
        engine.sum_up();
        engine.configured(&changes, recovery.last_time)?;
        engine.resume_recalling()?;
        engine.replenish(0)?;
        engine.begin_history()?;
        engine.measure_all();
        engine.export();
        let report = OpenReport {
            journal: recovery,
            checkpoint: covers,
            damaged_checkpoints,
            left_out,
            devices: engine.devices,
            pending: engine.pending,
            messages: engine.messages,
        };
        Ok((engine, report))
    }

    /// What follows from the parts.
    fn sum_up(&mut self) {
        let shared = self.shared.clone();
        let (mut watermark, mut expiry) = (0, Vec::new());
        for part in 0..shared.index.len() {
            let part = shared.index.lock(part);
            self.devices += part.devices.len() as u64;
            self.revoked += part.revocations.len() as u64;
            self.messages += part.known_messages() as u64;
            watermark = watermark.max(part.ids.watermark());
            for batch in part.batches.values() {
                expiry.push(self.place_of_expiry(batch));
                self.count_live(batch);
            }
        }
        // All at once: a tree that is built from what is sorted costs a fraction.
        self.expiry = expiry.into_iter().collect();
        StoreStats::set(&shared.stats.oldest_created_at, watermark);
    }
}
