//! What devices acknowledge: the end of an entry, a receipt, or nothing new.
//!
//! Nearly all of it is an arrive of a pending entry by a device whose cold row is in memory. That has a quick way: the device is looked up once, its record is
//! made of parts where they are, and the entry goes. What it changes at its message's part waits until the command is through, or something else has
//! to be decided: then all arrivals of a batch are counted at once. Everything else takes one event after the other.

use super::apply::{Pointed, channel, receipt_of};
use super::rows::Who;
use super::tables::part_with;
use super::{Effect, Engine, StoreFailure};
use crate::fault::{self, Fault};
use crate::ids::{MessageId, Seq, ShardId};
use crate::push::{Acked, Event, Failure, Millis, Receipt, ReceiptKind, ReceiptRef};
use crate::store::disk::Disk;
use crate::store::index::TOUCHED;
use crate::store::part::{Device, take_at};
use crate::store::part_messages::Arrival;
use crate::store::push_record::MessageKey;
use crate::store::record::{self, ReceiptParts, ReceiptRecord};
use crate::store::stats::StoreStats;
use crate::store::{Confirm, DeviceAck, SentAlone};

/// So many a second.
#[derive(Debug, Default)]
pub(super) struct Limiter {
    second: u64,
    used: u32,
}

impl Limiter {
    pub(super) fn allow(&mut self, now: Millis, per_second: u32) -> bool {
        if self.second != now / 1000 {
            *self = Self { second: now / 1000, used: 0 };
        }
        self.used += 1;
        self.used <= per_second
    }
}

/// An event about a message that isn't pending on the device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Standing {
    /// Said before.
    Known,
    /// It arrived before: a click or clean is new.
    Arrived,
    /// It had ended, for this reason if that is known.
    Late(Option<Failure>),
    /// No push record, or not a target.
    Unmatched,
}

/// With it when the message was accepted, and the sender's label.
type Found = (Standing, Option<(Millis, std::sync::Arc<str>)>);

fn kind_of(event: Event) -> ReceiptKind {
    match event {
        Event::Arrive => ReceiptKind::Arrive,
        Event::Click => ReceiptKind::Click,
        Event::Clean => ReceiptKind::Clean,
    }
}

/// Bytes of a receipt of a device with so many bytes of attributes, at most.
pub(super) fn receipt_bytes(attributes: usize) -> usize {
    // Numbers and the longest names (app, device, batch, job) beside the attributes.
    128 + 32 + 64 + 64 + 64 + attributes
}

impl<D: Disk> Engine<D> {
    /// All acks of one turn of a shard.
    pub(super) fn acks(
        &mut self,
        now: Millis,
        shard: ShardId,
        acks: &[DeviceAck],
    ) -> Result<(), StoreFailure> {
        let mut confirms = Vec::with_capacity(acks.len());
        let mut arrivals = Vec::with_capacity(acks.len());
        let mut made_room = false;
        self.shared.index.set_arriving(true);
        for (n, ack) in acks.iter().enumerate() {
            if n % TOUCHED == 0 {
                self.shared.index.touch(acks[n..].iter().take(TOUCHED).map(|ack| &ack.device), true);
            }
            let taken = self.arrived_quickly(now, ack, &mut arrivals)?;
            let (is_through, events) = (taken > 0 && taken == ack.events.len(), &ack.events[taken..]);
            if !is_through {
                self.count_arrivals(&mut arrivals)?;
            }
            if is_through || self.ack(now, ack, events, &mut made_room)? {
                confirms.push(Confirm { session: ack.session, number: ack.number });
            }
        }
        self.count_arrivals(&mut arrivals)?;
        self.shared.index.set_arriving(false);
        confirms.retain(|confirm| confirm.number != 0);
        if !confirms.is_empty() {
            self.effects.push(Effect::Confirmed(shard, confirms));
        }
        Ok(())
    }

    /// These events of an ack, one after the other. Whether it may be confirmed: what doesn't fit into the reserve's share for it, and finds no room though a
    /// segment is emptied for it, isn't, and the device keeps it.
    fn ack(
        &mut self,
        now: Millis,
        ack: &DeviceAck,
        events: &[Acked],
        made_room: &mut bool,
    ) -> Result<bool, StoreFailure> {
        let who = self.who(&ack.device)?;
        if who.is_none() && !self.is_lost(&ack.device) {
            // Sessions exist for known devices only; one that isn't has nothing to lose.
            return Ok(true);
        }
        let fits = |engine: &Self, who: &Who| engine.fits(events.len(), who.attributes.len());
        if who.as_ref().is_some_and(|who| !fits(self, who)) && !std::mem::replace(made_room, true) {
            self.make_room_for_acks(now)?;
        }
        // Of whom nobody knows what to say in a receipt has to say Hello first.
        let Some(who) = who.filter(|who| fits(self, who)) else {
            StoreStats::add(&self.shared.stats.acks_dropped, 1);
            // Told before any confirmation of this or a later commit, which would cover it. The ids of Hello too: on this session their messages
            // would not be sent, and would stay pending, as if the device had said nothing.
            self.effects.push(Effect::AckRefused(ack.session));
            return Ok(false);
        };
        let who = Who { client_ip: ack.client_ip.or(who.client_ip), ..who };
        for event in events {
            self.acked(now, &who, event)?;
        }
        Ok(true)
    }

    /// An event makes two records at most: a click with the arrive that it implies.
    fn fits(&self, events: usize, attributes: usize) -> bool {
        self.has_room_beside_ends(events * 2, receipt_bytes(attributes))
    }

    /// Takes the first events of an ack, as many as are arrives of pending entries: how many. Their records are staged, and the entries are gone from the
    /// device's list; [`Self::count_arrivals`] does the rest.
    fn arrived_quickly(
        &mut self,
        now: Millis,
        ack: &DeviceAck,
        arrivals: &mut Vec<Arrival>,
    ) -> Result<usize, StoreFailure> {
        let mut part = self.shared.index.of_device(&ack.device);
        let Some(device) = part.devices.get_mut(&ack.device) else { return Ok(0) };
        let (number, last_active) = (device.number, device.last_active());
        let Device { pending, about: Some(about), app, .. } = device else { return Ok(0) };
        if !self.fits(ack.events.len(), about.attributes.len()) {
            return Ok(0);
        }
        about.touched = true;
        for (n, acked) in ack.events.iter().enumerate() {
            let entry = pending.iter().position(|entry| entry.batch.message == acked.message);
            let Some(at) = entry.filter(|_| acked.event == Event::Arrive) else { return Ok(n) };
            let entry = &pending[at];
            let batch = &*entry.batch;
            let sent_at = acked.sent_at.or(entry.written_at());
            let receipt = ReceiptRef {
                kind: ReceiptKind::Arrive,
                outcome: Some(Ok(())),
                app: self.apps.key(*app).as_str(),
                message: batch.message,
                target: Some((batch.id.as_str(), entry.ordinal)),
                device_id: &about.device_id,
                event_time: acked.time.clamp(batch.accepted_at.min(now), now),
                raw_event_time: acked.time,
                sent_at: if entry.sent_reported() { 0 } else { sent_at.unwrap_or(0) },
                channel: channel(batch.accepted_at, sent_at),
                last_active,
                client_ip: ack.client_ip.or(about.client_ip),
                attributes: about.attributes.parts(),
                job_key: &batch.job_key,
                after: None,
                late: false,
                unmatched: false,
                implied: false,
            };
            let (event_time, sent_at) = (receipt.event_time, receipt.sent_at);
            self.scratch.clear();
            ReceiptParts { receipt, key: ack.device, number, batch: batch.seq }.encode(&mut self.scratch);
            let seq = if fault::is(Fault::EndUnsaid) {
                Seq(self.journal.next_seq().0 - 1)
            } else {
                self.journal.stage(record::RECEIPT, &self.scratch)?.0
            };
            let entry = take_at(pending, at);
            arrivals.push(Arrival { entry, seq, number, event_time, sent_at });
        }
        Ok(ack.events.len())
    }

    /// What arrivals change beside their devices' lists. In the order of their batches, each of which is looked up once.
    fn count_arrivals(&mut self, arrivals: &mut Vec<Arrival>) -> Result<(), StoreFailure> {
        arrivals.sort_by_key(|arrival| arrival.entry.batch.seq);
        for arrivals in arrivals.chunk_by(|a, b| a.entry.batch.seq == b.entry.batch.seq) {
            let (batch, newest) = (&*arrivals[0].entry.batch, arrivals[arrivals.len() - 1].seq);
            self.shared.streams.note_event(batch.app.as_str(), newest);
            self.ledger.active_all(&batch.app, arrivals.iter().map(|one| (one.number, one.event_time)));
            let (index, tables) = (&self.shared.index, &*self.tables.tables);
            let mut part = part_with(index, tables, &mut self.ledger, batch.home)?;
            let ended = part.arrived(batch, arrivals, &mut self.ledger);
            drop(part);
            self.entries_ended(ended);
        }
        arrivals.clear();
        Ok(())
    }

    fn acked(&mut self, now: Millis, who: &Who, acked: &Acked) -> Result<(), StoreFailure> {
        let pointed = {
            let part = self.shared.index.of_device(&who.key);
            let entry = part.devices.get(&who.key).and_then(|device| device.entry(acked.message));
            entry.map(|entry| Pointed {
                batch: entry.batch.clone(),
                ordinal: entry.ordinal,
                written_at: entry.written_at(),
                sent_reported: entry.sent_reported(),
            })
        };
        match pointed {
            Some(pointed) => self.arrived(now, who, acked, &pointed),
            None => self.not_pending(now, who, acked),
        }
    }

    /// The entry ends: arrived. A click or clean says so too.
    fn arrived(
        &mut self,
        now: Millis,
        who: &Who,
        acked: &Acked,
        pointed: &Pointed,
    ) -> Result<(), StoreFailure> {
        let accepted_at = pointed.batch.accepted_at;
        let sent_at = acked.sent_at.or(pointed.written_at);
        let arrive = Receipt {
            outcome: Some(Ok(())),
            event_time: acked.time.clamp(accepted_at.min(now), now),
            raw_event_time: acked.time,
            sent_at: if pointed.sent_reported { 0 } else { sent_at.unwrap_or(0) },
            channel: channel(accepted_at, sent_at),
            implied: acked.event != Event::Arrive,
            ..receipt_of(who, Some(pointed), ReceiptKind::Arrive)
        };
        let batch = pointed.batch.seq;
        let tapped = (acked.event != Event::Arrive).then(|| Receipt {
            kind: kind_of(acked.event),
            outcome: None,
            sent_at: 0,
            implied: false,
            ..arrive.clone()
        });
        let home = pointed.batch.home;
        let record = ReceiptRecord { receipt: arrive, key: who.key, number: who.number, batch };
        self.stage_receipt(&record, home)?;
        let Some(receipt) = tapped else { return Ok(()) };
        if self.standing(who, home, acked.event)?.0 == Standing::Arrived {
            let record = ReceiptRecord { receipt, key: who.key, number: who.number, batch: Seq(0) };
            self.stage_receipt(&record, home)?;
        }
        Ok(())
    }

    /// What the push record says of an event without a pending entry; with it when the message was accepted, and the sender's label.
    fn standing(&mut self, who: &Who, key: MessageKey, event: Event) -> Result<Found, StoreFailure> {
        let part = part_with(&self.shared.index, &*self.tables.tables, &mut self.ledger, key)?;
        let Some(record) = part.messages.get(&key).filter(|record| record.targets.contains(who.number))
        else {
            return Ok((Standing::Unmatched, None));
        };
        let arrived = record.arrived_on.contains(who.number);
        let said = match event {
            Event::Arrive => arrived || record.arrived_late.contains(who.number),
            Event::Click => record.clicked.contains(who.number),
            Event::Clean => record.cleaned.contains(who.number),
        };
        let standing = match (said, arrived) {
            (true, _) => Standing::Known,
            (false, true) => Standing::Arrived,
            (false, false) => Standing::Late(record.failure_on(who.number)),
        };
        Ok((standing, Some((record.accepted_at, record.job_key.clone()))))
    }

    fn not_pending(&mut self, now: Millis, who: &Who, acked: &Acked) -> Result<(), StoreFailure> {
        let key = MessageKey::of(&who.app, acked.message);
        let (standing, record) = self.standing(who, key, acked.event)?;
        let (accepted_at, job_key) = record.unwrap_or_else(|| (0, "".into()));
        let mut receipt = Receipt {
            message: MessageId(acked.message.0),
            event_time: acked.time.clamp(accepted_at.min(now), now),
            raw_event_time: acked.time,
            channel: channel(accepted_at, acked.sent_at),
            job_key,
            ..receipt_of(who, None, kind_of(acked.event))
        };
        match standing {
            Standing::Known => return Ok(()),
            Standing::Arrived => {}
            Standing::Late(after) => {
                receipt.late = true;
                receipt.after = after;
            }
            Standing::Unmatched => {
                if !self.unmatched.allow(now, self.options.unmatched_per_second) {
                    StoreStats::add(&self.shared.stats.unmatched_dropped, 1);
                    return Ok(());
                }
                receipt.unmatched = true;
                crate::telemetry::add(crate::telemetry::Counter::Unmatched, 1);
                receipt.channel = crate::push::Channel::Unknown;
            }
        }
        let record = ReceiptRecord { receipt, key: who.key, number: who.number, batch: Seq(0) };
        self.stage_receipt(&record, key)?;
        Ok(())
    }

    /// Written, and no arrive within the deadline: said once for an entry. It isn't essential, so it never uses the reserve's last bytes.
    pub(super) fn sent(&mut self, now: Millis, sent: &[SentAlone]) -> Result<(), StoreFailure> {
        for SentAlone { device, batch, sent_at } in sent {
            let Some(who) = self.who(device)? else { continue };
            let pointed = {
                let mut part = self.shared.index.of_device(device);
                let entries = part.devices.get_mut(device).map(|device| &mut device.pending);
                let entry = entries.and_then(|all| all.iter_mut().find(|entry| entry.batch.seq == *batch));
                let Some(entry) = entry.filter(|entry| !entry.sent_reported()) else { continue };
                Pointed {
                    batch: entry.batch.clone(),
                    ordinal: entry.ordinal,
                    written_at: Some(*sent_at),
                    sent_reported: false,
                }
            };
            if !self.has_room_beside_ends(1, receipt_bytes(who.attributes.len())) {
                continue;
            }
            let accepted_at = pointed.batch.accepted_at;
            let receipt = Receipt {
                event_time: (*sent_at).clamp(accepted_at.min(now), now),
                raw_event_time: *sent_at,
                sent_at: *sent_at,
                channel: channel(accepted_at, Some(*sent_at)),
                ..receipt_of(&who, Some(&pointed), ReceiptKind::Sent)
            };
            let record = ReceiptRecord { receipt, key: *device, number: who.number, batch: *batch };
            self.stage_receipt(&record, pointed.batch.home)?;
        }
        Ok(())
    }
}
