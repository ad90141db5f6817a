//! Records as a journal mostly has them, for benches: the types of records are the store's own.

use std::hint::black_box;

use super::receipt::{MassRecord, ReceiptRecord};
use super::{BatchRecord, DeviceRecord, Target, put_targets};
use crate::ids::{AppKey, BatchId, DeviceKey, MessageId, Seq};
use crate::push::{
    Attributes, Channel, Failure, MassOutcome, Millis, Ordinals, Priority, Receipt, ReceiptKind,
};

const NOW: Millis = 1_800_000_000_000;
/// Bytes of what a device says of itself.
const ATTRIBUTES: usize = 150;

type Encode = Box<dyn Fn(&mut Vec<u8>)>;
type Decode = fn(&[u8]) -> bool;

/// One kind of record.
pub struct Sample {
    /// What it is.
    pub name: String,
    encode: Encode,
    decode: Decode,
}

impl std::fmt::Debug for Sample {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sample").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Sample {
    /// Appends the record's payload.
    pub fn encode(&self, out: &mut Vec<u8>) {
        (self.encode)(out);
    }

    /// Takes a payload apart; whether it was a whole one.
    pub fn decode(&self, payload: &[u8]) -> bool {
        (self.decode)(payload)
    }

    /// One of each.
    pub fn all() -> Vec<Self> {
        let (app, id) = (AppKey::parse("23456789"), BatchId::parse("batch-0000000000000001"));
        let (Some(app), Some(id)) = (app, id) else { return Vec::new() };
        let sample = |name: &str, encode, decode| Self { name: name.to_owned(), encode, decode };
        let (receipt, mass) = (receipt(app.clone(), id.clone()), mass(app, id));
        let mut all = vec![
            sample("receipt", Box::new(move |out| receipt.encode(out)), |payload| {
                black_box(ReceiptRecord::decode(payload)).is_ok()
            }),
            sample("the same end for 1,000 targets", Box::new(move |out| mass.encode(out)), |payload| {
                black_box(MassRecord::decode(payload)).is_ok()
            }),
            sample("device", Box::new(put_device), |payload| {
                black_box(DeviceRecord::decode(payload)).is_ok()
            }),
        ];
        for targets in [1, 1_000] {
            let name = format!("batch of {targets}");
            all.push(sample(&name, Box::new(move |out| put_batch(out, targets)), |payload| {
                BatchRecord::decode(payload).is_ok_and(|batch| black_box(batch.targets()).is_ok())
            }));
        }
        all
    }
}

fn receipt(app: AppKey, id: BatchId) -> ReceiptRecord {
    ReceiptRecord {
        receipt: Receipt {
            kind: ReceiptKind::Arrive,
            outcome: Some(Ok(())),
            app,
            message: MessageId(7_000_000_001),
            target: Some((id, 500)),
            device_id: "device-0000000000000001".into(),
            event_time: NOW,
            raw_event_time: NOW,
            sent_at: NOW,
            channel: Channel::Online,
            last_active: NOW,
            client_ip: Some([127, 0, 0, 1].into()),
            attributes: Attributes::whole([7; ATTRIBUTES].as_slice().into()),
            job_key: "job".into(),
            after: None,
            late: false,
            unmatched: false,
            implied: false,
        },
        key: DeviceKey([3; 16]),
        number: 500,
        batch: Seq(9),
    }
}

fn mass(app: AppKey, batch: BatchId) -> MassRecord {
    let mass = MassOutcome {
        app,
        message: MessageId(7_000_000_001),
        batch,
        reason: Failure::Expired,
        event_time: NOW,
        ordinals: Ordinals::from_parts(0, &[u8::MAX; 125]),
        count: 1_000,
        job_key: "job".into(),
    };
    MassRecord { mass, batch: Seq(9), numbers: vec![0; 2_016] }
}

fn put_device(out: &mut Vec<u8>) {
    let device = DeviceRecord {
        app: "23456789",
        key: DeviceKey([3; 16]),
        number: 500,
        push_on: true,
        device_id: "device-0000000000000001",
        attributes: &[7; ATTRIBUTES],
        client_ip: Some([127, 0, 0, 1].into()),
        last_active: NOW,
        changed: super::device::ATTRIBUTES,
    };
    device.encode(out);
}

fn put_batch(out: &mut Vec<u8>, targets: u32) {
    let target = |ordinal: u32| Target { ordinal, key: DeviceKey([ordinal as u8; 16]), number: ordinal };
    let all: Vec<Target> = (0..targets).map(target).collect();
    let mut encoded = Vec::new();
    put_targets(&mut encoded, &all);
    let batch = BatchRecord {
        seq: Seq(9),
        app: "23456789",
        message: MessageId(7_000_000_001),
        id: "batch-0000000000000001",
        job_key: "job",
        body_digest: [1; 16],
        digest: [2; 16],
        created_at: NOW,
        accepted_at: NOW,
        expires_at: NOW + 3_600_000,
        online_only: false,
        named: targets,
        refused: &[],
        body: &[7; 200],
        targets: &encoded,
        priority: Priority::Normal,
        collapse_key: "",
        refused_who: &[],
        of_account: Ordinals::default(),
        unbound: Ordinals::default(),
        part: 0,
    };
    batch.encode(out);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_comes_back_whole() {
        let all = Sample::all();
        assert_eq!(all.len(), 5);
        for sample in all {
            let mut payload = Vec::new();
            sample.encode(&mut payload);
            assert!(sample.decode(&payload), "{}", sample.name);
            assert!(!sample.decode(&payload[1..]), "{}", sample.name);
        }
    }
}
