//! Reading a checkpoint back; see [`super::checkpoint`] for its form.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
use std::sync::{Arc, RwLock};

use super::apps::{Controls, take_all};
use super::checkpoint::{DEVICES, HEAD, HOME, VERSION};
use super::recover::OpenError;
use crate::binding::Step;
use crate::ids::{AppKey, BatchId, DeviceKey, DigestKey, MessageId, Seq};
use crate::push::Attributes;
use crate::store::batch::Batch;
use crate::store::batch_ids::BatchIds;
use crate::store::checkpoint::CheckpointReader;
use crate::store::codec::{Malformed, Take};
use crate::store::disk::Disk;
use crate::store::index::Index;
use crate::store::part::{About, Entry, Part, Spread};
use crate::store::push_record::MessageKey;
use crate::store::recalls::Recall;
use crate::store::record::device::take_binding;
use crate::store::record::{take_epoch, take_priority};
use crate::store::stream::saved::SavedStreams;

/// One copy of what stands with many devices.
#[derive(Debug, Default)]
pub(super) struct Interned {
    pub(super) apps: HashSet<AppKey>,
    pub(super) attributes: HashSet<Arc<[u8]>>,
}

impl Interned {
    pub(super) fn app(&mut self, text: &str) -> Result<AppKey, Malformed> {
        let app = AppKey::parse(text).ok_or(Malformed)?;
        if let Some(known) = self.apps.get(&app) {
            return Ok(known.clone());
        }
        self.apps.insert(app.clone());
        Ok(app)
    }

    pub(super) fn attributes(&mut self, bytes: &[u8]) -> Attributes {
        if let Some(known) = self.attributes.get(bytes) {
            return Attributes(known.clone());
        }
        let new: Arc<[u8]> = bytes.into();
        self.attributes.insert(new.clone());
        Attributes(new)
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
    pub(super) interned: Interned,
    /// Makes the digests of accounts.
    digest_key: DigestKey,
    /// Live batches read so far, whatever their part.
    batches: HashMap<Seq, Arc<Batch>, Spread>,
}

impl Loaded {
    /// Nothing yet.
    pub(super) fn empty(parts: usize, digest_key: DigestKey) -> Self {
        let index = Index::new(parts);
        let floors = vec![Seq(0); index.len()];
        Self {
            index,
            home_floor: floors.clone(),
            device_floor: floors,
            held: HashMap::default(),
            next_number: 0,
            streams: SavedStreams::default(),
            controls: Controls::default(),
            interned: Interned::default(),
            digest_key,
            batches: HashMap::default(),
        }
    }

    pub(super) fn read<D: Disk>(
        reader: &mut CheckpointReader<D>,
        digest_key: DigestKey,
    ) -> Result<Self, OpenError> {
        let mut loaded = match reader.next_slice()? {
            Some(head) => Self::read_head(&head, digest_key)?,
            None => return Err(Malformed.into()),
        };
        while let Some(slice) = reader.next_slice()? {
            loaded.read_slice(&slice)?;
        }
        loaded.batches = HashMap::default();
        Ok(loaded)
    }

    fn read_head(slice: &[u8], digest_key: DigestKey) -> Result<Self, Malformed> {
        let mut take = Take(slice);
        if take.array()? != [HEAD, VERSION] {
            return Err(Malformed);
        }
        let mut loaded = Self::empty(take.u32()? as usize, digest_key);
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
            let batch = Arc::new(take_batch(take, &mut self.interned)?);
            part.batches.insert(batch.seq, batch.clone());
            self.batches.insert(batch.seq, batch);
        }
        part.ids = BatchIds::decode(take)?;
        for _ in 0..take.varint()? {
            let app = self.interned.app(take.text()?)?;
            let (message, seq) = (MessageId(take.u64()?), Seq(take.u64()?));
            let one = Arc::new(Recall::new(seq, app, message, take.u64()?, take.u64()?));
            part.recalls.insert(one.home, one);
        }
        Ok(())
    }

    fn read_devices(&mut self, take: &mut Take<'_>, number: usize) -> Result<(), Malformed> {
        let mut part = self.index.lock(number);
        let mut table = Vec::new();
        for _ in 0..take.varint()? {
            table.push(self.interned.attributes(take.bytes()?));
        }
        for _ in 0..take.varint()? {
            let key = DeviceKey(take.array()?);
            let number = take.u32()?;
            let push_on = take.flag()?;
            let app = self.interned.app(take.text()?)?;
            let device_id = take.text()?.into();
            let attributes = usize::try_from(take.varint()?).ok().and_then(|place| table.get(place));
            let attributes = attributes.ok_or(Malformed)?.clone();
            let (client_ip, last_active) = (take.ip()?, take.u64()?);
            let about = About { app, device_id, attributes, client_ip, last_active, bindings: None };
            part.know(key, number, push_on, about);
            let device = part.devices.get_mut(&key).ok_or(Malformed)?;
            for _ in 0..take.varint()? {
                device.apply_step(&Step { bound: true, binding: take_binding(take)? }, &self.digest_key);
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

fn take_batch(take: &mut Take<'_>, interned: &mut Interned) -> Result<Batch, Malformed> {
    let seq = Seq(take.u64()?);
    let app = interned.app(take.text()?)?;
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
