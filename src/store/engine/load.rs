//! Reading a checkpoint back; see [`super::checkpoint`] for its form.
//!
//! Slices are read one after the other on the thread of the start, and taken in by as many threads as there are cores: each is of one part. All homes
//! are there before the first list is read, as lists name their batches.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use super::apps::{Controls, take_all};
use super::checkpoint::{DEVICES, HEAD, HOME, MAY_BE_BOUND, PUSH_ON, VERSION, WITH_ACCOUNT};
use super::load_threads::{on_threads, threads_for};
use super::recover::OpenError;
use crate::ids::{AccountDigest, AppKey, BatchId, DeviceKey, MessageId, Seq};
use crate::store::batch::Batch;
use crate::store::batch_ids::BatchIds;
use crate::store::checkpoint::CheckpointReader;
use crate::store::codec::{Malformed, Take};
use crate::store::disk::Disk;
use crate::store::index::Index;
use crate::store::options::StoreOptions;
use crate::store::part::{AppId, Described, Device, Entry, Spread};
use crate::store::push_record::MessageKey;
use crate::store::recalls::Recall;
use crate::store::record::{take_epoch, take_priority};
use crate::store::stream::saved::SavedStreams;

/// One copy of each app, and a small number for it.
#[derive(Debug, Default)]
pub(super) struct KnownApps {
    keys: Vec<AppKey>,
    ids: HashMap<AppKey, AppId>,
}

impl KnownApps {
    pub(super) fn app(&mut self, text: &str) -> Result<AppKey, Malformed> {
        let id = self.id(&AppKey::parse(text).ok_or(Malformed)?);
        Ok(self.key(id).clone())
    }

    pub(super) fn id(&mut self, app: &AppKey) -> AppId {
        if let Some(known) = self.ids.get(app) {
            return *known;
        }
        let id = AppId(self.keys.len() as u32);
        self.keys.push(app.clone());
        self.ids.insert(app.clone(), id);
        id
    }

    /// One that [`Self::id`] gave.
    pub(super) fn key(&self, id: AppId) -> &AppKey {
        &self.keys[id.0 as usize]
    }
}

/// Bytes of a batch and of a device in a slice, at least.
const BATCH_BYTES: usize = 64;
const DEVICE_BYTES: usize = 36;
/// Shards of the live batches while they are read.
const SHARDS: usize = 64;

/// Live batches by their sequence, whatever their part.
type Batches = HashMap<Seq, Arc<Batch>, Spread>;

fn shard_of(seq: Seq) -> usize {
    (seq.0 % SHARDS as u64) as usize
}

/// Names as batches have them: the same one again costs no allocation, and most are.
struct Names<'a> {
    apps: &'a Mutex<KnownApps>,
    app: Option<AppKey>,
    job_key: Arc<str>,
}

impl<'a> Names<'a> {
    fn new(apps: &'a Mutex<KnownApps>) -> Self {
        Self { apps, app: None, job_key: "".into() }
    }

    fn app(&mut self, text: &str) -> Result<AppKey, Malformed> {
        if let Some(app) = self.app.as_ref().filter(|app| app.as_str() == text) {
            return Ok(app.clone());
        }
        let app = self.apps.lock().unwrap_or_else(PoisonError::into_inner).app(text)?;
        Ok(self.app.insert(app).clone())
    }
}

fn same(known: &mut Arc<str>, text: &str) -> Arc<str> {
    if **known != *text {
        *known = text.into();
    }
    known.clone()
}

/// An entry whose batch is younger than its home's slice.
pub(super) struct Held {
    pub(super) device: DeviceKey,
    pub(super) ordinal: u32,
    /// As [`Entry::flags`] has them.
    pub(super) flags: u8,
}

/// The index as a checkpoint has it: each half of each part as of a sequence of its own.
pub(super) struct Loaded {
    pub(super) index: Index,
    /// Records up to here are in the part's batches and ids.
    pub(super) home_floor: Vec<Seq>,
    /// Records up to here are in the part's devices and lists.
    pub(super) device_floor: Vec<Seq>,
    pub(super) held: HashMap<Seq, Vec<Held>, Spread>,
    pub(super) next_number: u32,
    pub(super) streams: SavedStreams,
    pub(super) controls: Controls,
    pub(super) apps: KnownApps,
}

/// What a slice says beside what went into its part.
struct OfSlice {
    part: usize,
    floor: Seq,
    held: Vec<(Seq, Held)>,
    /// Above the highest number of a device.
    next_number: u32,
}

impl Loaded {
    /// Nothing yet.
    pub(super) fn empty(parts: usize, options: &StoreOptions) -> Self {
        let index = Index::new(parts, options.device_cache_bytes);
        let floors = vec![Seq(0); index.len()];
        Self {
            index,
            home_floor: floors.clone(),
            device_floor: floors,
            held: HashMap::default(),
            next_number: 0,
            streams: SavedStreams::default(),
            controls: Controls::default(),
            apps: KnownApps::default(),
        }
    }

    pub(super) fn read<D: Disk>(
        reader: &mut CheckpointReader<D>,
        options: &StoreOptions,
    ) -> Result<Self, OpenError> {
        let threads = threads_for(reader);
        let head = reader.next_slice()?.ok_or(Malformed)?;
        let mut loaded = Self::read_head(&head, options)?;
        let apps = Mutex::default();
        let shards: Vec<Mutex<Batches>> = (0..SHARDS).map(|_| Mutex::default()).collect();
        let index = &loaded.index;
        let (homes, first) =
            on_threads(threads, reader, (HOME, None), |slice| read_home(index, slice, &apps, &shards))?;
        let shards: Vec<Batches> = shards
            .into_iter()
            .map(|shard| shard.into_inner().unwrap_or_else(PoisonError::into_inner))
            .collect();
        let read = |slice: &[u8]| read_devices(index, slice, &apps, &shards);
        let (devices, other) = on_threads(threads, reader, (DEVICES, first), read)?;
        if other.is_some() {
            return Err(Malformed.into());
        }
        for home in homes {
            loaded.home_floor[home.part] = home.floor;
        }
        for slice in devices {
            loaded.device_floor[slice.part] = slice.floor;
            loaded.next_number = loaded.next_number.max(slice.next_number);
            for (seq, held) in slice.held {
                loaded.held.entry(seq).or_default().push(held);
            }
        }
        loaded.apps = apps.into_inner().unwrap_or_else(PoisonError::into_inner);
        Ok(loaded)
    }

    fn read_head(slice: &[u8], options: &StoreOptions) -> Result<Self, Malformed> {
        let mut take = Take(slice);
        if take.array()? != [HEAD, VERSION] {
            return Err(Malformed);
        }
        let mut loaded = Self::empty(take.u32()? as usize, options);
        loaded.next_number = take.u32()?;
        loaded.streams = SavedStreams::decode(&mut take)?;
        loaded.controls = take_all(&mut take)?;
        Ok(loaded)
    }
}

/// What stands before the content of a slice: which part it is of, and as of when.
fn take_start(take: &mut Take<'_>, index: &Index) -> Result<OfSlice, Malformed> {
    take.u8()?;
    let (part, floor) = (take.u32()? as usize, Seq(take.u64()?));
    if part >= index.len() {
        return Err(Malformed);
    }
    Ok(OfSlice { part, floor, held: Vec::new(), next_number: 0 })
}

/// Room for so many, as far as a slice can hold them.
fn room(count: u64, take: &Take<'_>, least: usize) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX).min(take.0.len() / least)
}

fn read_home(
    index: &Index,
    slice: &[u8],
    apps: &Mutex<KnownApps>,
    shards: &[Mutex<Batches>],
) -> Result<OfSlice, Malformed> {
    let mut take = Take(slice);
    let read = take_start(&mut take, index)?;
    let mut part = index.lock(read.part);
    let mut names = Names::new(apps);
    let batches = take.varint()?;
    part.batches.reserve(room(batches, &take, BATCH_BYTES));
    for _ in 0..batches {
        let batch = Arc::new(take_batch(&mut take, &mut names)?);
        part.batches.insert(batch.seq, batch.clone());
        let shard = shards[shard_of(batch.seq)].lock();
        shard.unwrap_or_else(PoisonError::into_inner).insert(batch.seq, batch);
    }
    part.ids = BatchIds::decode(&mut take)?;
    for _ in 0..take.varint()? {
        let app = names.app(take.text()?)?;
        let (message, seq) = (MessageId(take.u64()?), Seq(take.u64()?));
        let one = Arc::new(Recall::new(seq, app, message, take.u64()?, take.u64()?));
        part.recalls.insert(one.home, one);
    }
    take.0.is_empty().then_some(read).ok_or(Malformed)
}

fn read_devices(
    index: &Index,
    slice: &[u8],
    apps: &Mutex<KnownApps>,
    shards: &[Batches],
) -> Result<OfSlice, Malformed> {
    let mut take = Take(slice);
    let mut read = take_start(&mut take, index)?;
    let mut part = index.lock(read.part);
    let mut of_slice = Vec::new();
    for _ in 0..take.varint()? {
        let app = AppKey::parse(take.text()?).ok_or(Malformed)?;
        of_slice.push(apps.lock().unwrap_or_else(PoisonError::into_inner).id(&app));
    }
    let devices = take.varint()?;
    part.devices.reserve(room(devices, &take, DEVICE_BYTES));
    for _ in 0..devices {
        let (key, mut device) = take_device(&mut take, &of_slice)?;
        read.next_number = read.next_number.max(device.number.saturating_add(1));
        take_pending(&mut take, key, &mut device, shards, &mut read.held)?;
        part.devices.insert(key, device);
    }
    for _ in 0..take.varint()? {
        let (device, revocation) = take_epoch(&mut take)?;
        part.revocations.insert(device, revocation);
    }
    take.0.is_empty().then_some(read).ok_or(Malformed)
}

fn take_device(take: &mut Take<'_>, apps: &[AppId]) -> Result<(DeviceKey, Device), Malformed> {
    let key = DeviceKey(take.array()?);
    let (number, flags) = (take.u32()?, take.u8()?);
    let app = usize::try_from(take.varint()?).ok().and_then(|at| apps.get(at));
    let described = Described {
        number,
        app: *app.ok_or(Malformed)?,
        push_on: flags & PUSH_ON != 0,
        attributes: (take.u64()?, u16::try_from(take.varint()?).map_err(|_| Malformed)?),
        last_active: u64::from(take.u32()?) * 1_000,
    };
    let mut device = Device::new(&described);
    device.set_may_be_bound(flags & MAY_BE_BOUND != 0);
    if flags & WITH_ACCOUNT != 0 {
        device.account = Some(AccountDigest::from_number(take.u64()?).ok_or(Malformed)?);
    }
    Ok((key, device))
}

fn take_pending(
    take: &mut Take<'_>,
    key: DeviceKey,
    device: &mut Device,
    shards: &[Batches],
    held: &mut Vec<(Seq, Held)>,
) -> Result<(), Malformed> {
    for _ in 0..take.varint()? {
        let (seq, ordinal, flags) = (Seq(take.varint()?), take.varint32()?, take.u8()?);
        match shards[shard_of(seq)].get(&seq) {
            Some(batch) => device.push(Entry::new(batch.clone(), ordinal, flags)),
            None => held.push((seq, Held { device: key, ordinal, flags })),
        }
    }
    Ok(())
}

fn take_batch(take: &mut Take<'_>, names: &mut Names<'_>) -> Result<Batch, Malformed> {
    let seq = Seq(take.u64()?);
    let app = names.app(take.text()?)?;
    let message = MessageId(take.u64()?);
    Ok(Batch {
        seq,
        home: MessageKey::of(&app, message),
        app,
        message,
        id: BatchId::parse(take.text()?).ok_or(Malformed)?,
        job_key: same(&mut names.job_key, take.text()?),
        accepted_at: take.u64()?,
        expires_at: take.u64()?,
        online_only: take.flag()?,
        recovered: true,
        only: if take.flag()? { Some(DeviceKey(take.array()?)) } else { None },
        place: AtomicU64::new(take.u64()?),
        bytes: AtomicU32::new(take.u32()?),
        live: AtomicU32::new(take.u32()?),
        damaged: AtomicBool::new(false),
        unreadable_since: AtomicU64::new(0),
        body: RwLock::new(None),
        priority: take_priority(take.u8()?)?,
        collapse_key: take.text()?.into(),
        body_bytes: take.u32()?,
        revoked: AtomicBool::new(false),
    })
}
