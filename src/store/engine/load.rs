//! Reading a checkpoint back; see [`super::checkpoint`] for its form.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
use std::sync::{Arc, RwLock};

use super::apps::{Controls, take_all};
use super::checkpoint::{DEVICES, HEAD, HOME, MAY_BE_BOUND, PUSH_ON, VERSION, WITH_ACCOUNT};
use super::recover::OpenError;
use crate::ids::{AccountDigest, AppKey, BatchId, DeviceKey, MessageId, Seq};
use crate::store::batch::Batch;
use crate::store::batch_ids::BatchIds;
use crate::store::checkpoint::CheckpointReader;
use crate::store::codec::{Malformed, Take};
use crate::store::disk::Disk;
use crate::store::index::Index;
use crate::store::options::StoreOptions;
use crate::store::part::{AppId, Described, Entry, Part, Spread};
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
    /// Live batches read so far, whatever their part.
    batches: HashMap<Seq, Arc<Batch>, Spread>,
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
            batches: HashMap::default(),
        }
    }

    pub(super) fn read<D: Disk>(
        reader: &mut CheckpointReader<D>,
        options: &StoreOptions,
    ) -> Result<Self, OpenError> {
        let mut loaded = match reader.next_slice()? {
            Some(head) => Self::read_head(&head, options)?,
            None => return Err(Malformed.into()),
        };
        while let Some(slice) = reader.next_slice()? {
            loaded.read_slice(&slice)?;
        }
        loaded.batches = HashMap::default();
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

    fn read_slice(&mut self, slice: &[u8]) -> Result<(), Malformed> {
        let mut take = Take(slice);
        let kind = take.u8()?;
        let number = take.u32()? as usize;
        let floor = Seq(take.u64()?);
        if number >= self.index.len() {
            return Err(Malformed);
        }
        match kind {
            HOME => {
                self.home_floor[number] = floor;
                self.read_home(&mut take, number)?;
            }
            DEVICES => {
                self.device_floor[number] = floor;
                self.read_devices(&mut take, number)?;
            }
            _ => return Err(Malformed),
        }
        take.0.is_empty().then_some(()).ok_or(Malformed)
    }

    fn read_home(&mut self, take: &mut Take<'_>, number: usize) -> Result<(), Malformed> {
        let mut part = self.index.lock(number);
        for _ in 0..take.varint()? {
            let batch = Arc::new(take_batch(take, &mut self.apps)?);
            part.batches.insert(batch.seq, batch.clone());
            self.batches.insert(batch.seq, batch);
        }
        part.ids = BatchIds::decode(take)?;
        for _ in 0..take.varint()? {
            let app = self.apps.app(take.text()?)?;
            let (message, seq) = (MessageId(take.u64()?), Seq(take.u64()?));
            let one = Arc::new(Recall::new(seq, app, message, take.u64()?, take.u64()?));
            part.recalls.insert(one.home, one);
        }
        Ok(())
    }

    fn read_devices(&mut self, take: &mut Take<'_>, number: usize) -> Result<(), Malformed> {
        let mut part = self.index.lock(number);
        let mut apps = Vec::new();
        for _ in 0..take.varint()? {
            let app = AppKey::parse(take.text()?).ok_or(Malformed)?;
            apps.push(self.apps.id(&app));
        }
        for _ in 0..take.varint()? {
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
            part.know(key, &described, &self.index.warmth);
            let device = part.devices.get_mut(&key).ok_or(Malformed)?;
            device.set_may_be_bound(flags & MAY_BE_BOUND != 0);
            if flags & WITH_ACCOUNT != 0 {
                device.account = Some(AccountDigest::from_number(take.u64()?).ok_or(Malformed)?);
            }
            self.next_number = self.next_number.max(number.saturating_add(1));
            take_pending(take, &mut part, key, &self.batches, &mut self.held)?;
        }
        for _ in 0..take.varint()? {
            let (device, revocation) = take_epoch(take)?;
            part.revocations.insert(device, revocation);
        }
        Ok(())
    }
}

fn take_pending(
    take: &mut Take<'_>,
    part: &mut Part,
    key: DeviceKey,
    batches: &HashMap<Seq, Arc<Batch>, Spread>,
    held: &mut HashMap<Seq, Vec<Held>, Spread>,
) -> Result<(), Malformed> {
    let device = part.devices.get_mut(&key).ok_or(Malformed)?;
    for _ in 0..take.varint()? {
        let (seq, ordinal, flags) = (Seq(take.varint()?), take.varint32()?, take.u8()?);
        match batches.get(&seq) {
            Some(batch) => device.push(Entry::new(batch.clone(), ordinal, flags)),
            None => held.entry(seq).or_default().push(Held { device: key, ordinal, flags }),
        }
    }
    Ok(())
}

fn take_batch(take: &mut Take<'_>, apps: &mut KnownApps) -> Result<Batch, Malformed> {
    let seq = Seq(take.u64()?);
    let app = apps.app(take.text()?)?;
    let message = MessageId(take.u64()?);
    Ok(Batch {
        seq,
        home: MessageKey::of(&app, message),
        app,
        message,
        id: BatchId::parse(take.text()?).ok_or(Malformed)?,
        job_key: take.text()?.into(),
        accepted_at: take.u64()?,
        expires_at: take.u64()?,
        online_only: take.flag()?,
        recovered: true,
        only: if take.flag()? { Some(DeviceKey(take.array()?)) } else { None },
        place: AtomicU64::new(take.u64()?),
        bytes: AtomicU32::new(take.u32()?),
        live: AtomicU32::new(take.u32()?),
        damaged: AtomicBool::new(false),
        body: RwLock::new(None),
        priority: take_priority(take.u8()?)?,
        collapse_key: take.text()?.into(),
        body_bytes: take.u32()?,
        revoked: AtomicBool::new(false),
    })
}
