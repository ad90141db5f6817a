//! What the demo pushes, and the account of it: which message went to whom, in which batch.

use rand::rngs::SmallRng;
use rand::seq::index;
use rand::{Rng, SeedableRng};

use super::fleet::{Devices, device_id};
use crate::client::router::{Fate, Ledger};
use crate::push::Millis;
use crate::wire::pb::device::{Kind, Push};
use crate::wire::pb::router::{DeliverBatch, PushSource, Target};

/// Message ids look like those of the receipt log.
const FIRST_MESSAGE: u64 = 868_947_123_000_000;

/// Makes batches and remembers them.
#[derive(Debug)]
pub(super) struct Plan {
    app: String,
    rng: SmallRng,
    messages: u64,
    batches: Vec<Planned>,
}

#[derive(Debug)]
struct Planned {
    batch_id: String,
    message_id: u64,
    /// Numbers of devices by ordinal; `None`: one that doesn't exist.
    targets: Vec<Option<u32>>,
}

impl Plan {
    pub(super) fn new(app: &str, seed: u64) -> Self {
        Self { app: app.to_owned(), rng: SmallRng::seed_from_u64(seed), messages: 0, batches: Vec::new() }
    }

    /// A new message.
    pub(super) fn message(&mut self) -> u64 {
        self.messages += 1;
        FIRST_MESSAGE + self.messages
    }

    /// So many different numbers below `below`.
    pub(super) fn some(&mut self, count: u32, below: u32) -> Vec<u32> {
        let picked = index::sample(&mut self.rng, below as usize, count.min(below) as usize);
        picked.into_iter().map(|n| n as u32).collect()
    }

    /// A batch of a message to devices.
    pub(super) fn batch(
        &mut self,
        now: Millis,
        message_id: u64,
        targets: Vec<Option<u32>>,
        retention_seconds: Option<u32>,
    ) -> DeliverBatch {
        let batch_id = format!("demo-{}", self.batches.len() + 1);
        let target = |(i, n): (usize, &Option<u32>)| Target {
            device_id: n.map_or_else(|| format!("nobody-{i}"), device_id),
            account: String::new(),
        };
        // One in eight messages is data for the app, which nobody taps; the same message always has the same body.
        let kind = if message_id % 8 == 7 { Kind::Message } else { Kind::Notification };
        let batch = DeliverBatch {
            batch_id: batch_id.clone(),
            app_key: self.app.clone(),
            message_id,
            body: Some(Push {
                kind: kind.into(),
                title: format!("Message {}", message_id - FIRST_MESSAGE),
                body: "The whole ring, over real sockets. ".repeat(4),
                extras: "{\"from\":\"demo\"}".into(),
                ..Push::default()
            }),
            targets: targets.iter().enumerate().map(target).collect(),
            created_at: now,
            retention_seconds,
            job_key: "demo".into(),
            source: PushSource::Api.into(),
            target_type: if targets.len() > 1 { "all" } else { "device" }.into(),
            ..DeliverBatch::default()
        };
        self.batches.push(Planned { batch_id, message_id, targets });
        batch
    }

    /// Any of the devices.
    pub(super) fn any(&mut self, devices: u32) -> u32 {
        self.rng.random_range(0..devices)
    }

    /// Messages that were accepted for a device, did not fail, and that its app never got.
    pub(super) fn lost(&self, ledger: &Ledger, devices: &Devices) -> u64 {
        let mut lost = 0;
        for planned in &self.batches {
            let Some(fates) = ledger.fates(&self.app, &planned.batch_id) else { continue };
            for (fate, target) in fates.zip(&planned.targets) {
                let wanted = matches!(fate, Fate::Arrived | Fate::Pending);
                let got = target.and_then(|n| devices.got.get(n as usize));
                lost += u64::from(wanted && !got.is_some_and(|got| got.contains(&planned.message_id)));
            }
        }
        lost
    }
}
