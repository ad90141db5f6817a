//! Revocations are durable when they are answered, whatever crashes, and outlive checkpoints and trimming.

use std::collections::BTreeMap;
use std::sync::Arc;

use rand::SeedableRng;
use rand::rngs::SmallRng;
use tokio::sync::oneshot;

use super::support::{Harness, batch, device, small};
use crate::credential::Revocation;
use crate::push::Rejection;
use crate::store::Command;
use crate::store::disk::crash::{CrashTest, everywhere};
use crate::store::disk::sim::SimDisk;
use crate::store::engine::StoreFailure;
use crate::store::options::StoreOptions;

const START: u64 = 1_800_000_000_000;
/// Devices 0 and 1 are known, the others never seen.
const DEVICES: u32 = 4;

type Answer = oneshot::Receiver<Result<Revocation, Rejection>>;

fn revoke(
    harness: &mut Harness<SimDisk>,
    n: u32,
    epoch: u32,
    allow_registration: bool,
) -> Result<Answer, StoreFailure> {
    let (reply, answer) = oneshot::channel();
    harness.apply(Command::RevokeCredentials { device: device(n), epoch, allow_registration, reply })?;
    Ok(answer)
}

#[test]
fn it_is_told_and_answered_only_when_durable_and_kept_over_a_power_loss() {
    let disk = Arc::new(SimDisk::new());
    let mut harness = Harness::open(&disk, &small(), START);
    harness.see(0);
    harness.commit().expect("the disk works");
    harness.sink.take();
    let mut answer = revoke(&mut harness, 0, 3, false).expect("the disk works");
    assert!(answer.try_recv().is_err() && harness.sink.revoked().is_empty());
    harness.commit().expect("the disk works");
    let locked = Revocation { min_epoch: 4, locked: true };
    assert_eq!(answer.try_recv().expect("answered"), Ok(locked));
    assert_eq!(harness.sink.revoked(), [device(0)]);
    let mut again = revoke(&mut harness, 0, 3, true).expect("the disk works");
    harness.commit().expect("the disk works");
    let allowed = Revocation { min_epoch: 5, locked: false };
    assert_eq!(again.try_recv().expect("answered"), Ok(allowed));
    let lost = revoke(&mut harness, 1, 3, false).expect("the disk works");
    drop(harness);
    disk.crash(&mut SmallRng::seed_from_u64(1));
    let harness = Harness::open(&disk, &small(), START);
    assert_eq!(harness.engine.revocation(&device(0)), allowed);
    assert_eq!(harness.engine.revocation(&device(1)), Revocation::default());
    drop(lost);
}

/// What was answered, and all that was tried.
#[derive(Debug, Default)]
struct Promised {
    answered: BTreeMap<u32, Revocation>,
    tried: BTreeMap<u32, Vec<Revocation>>,
    waiting: Vec<(u32, Answer)>,
}

impl Promised {
    /// Revocations among batches, so that segments fill, checkpoints are written and the oldest segments go.
    fn run(&mut self, harness: &mut Harness<SimDisk>) -> Result<(), StoreFailure> {
        for n in 0..2 {
            harness.see(n);
        }
        for round in 0..24u32 {
            let n = round % DEVICES;
            let tried = self.tried.entry(n).or_default();
            let before = tried.last().copied().unwrap_or_default();
            tried.push(before.next(7, round % 3 == 0));
            self.waiting.push((n, revoke(harness, n, 7, round % 3 == 0)?));
            let mut new = batch(&format!("b{round}"), u64::from(round) + 1, &[0, 1], START, 3_600_000);
            new.body = vec![b'x'; 400].into();
            let (reply, _answer) = oneshot::channel();
            harness.apply(Command::Deliver { batch: Box::new(new), reply })?;
            if round % 2 == 0 {
                harness.commit()?;
                harness.engine.maintain(START)?;
                self.listen();
            }
            if round % 8 == 7 {
                harness.checkpoint()?;
            }
        }
        harness.settle()?;
        self.listen();
        Ok(())
    }

    fn listen(&mut self) {
        let answered = &mut self.answered;
        self.waiting.retain_mut(|(n, answer)| match answer.try_recv() {
            Ok(Ok(revocation)) => {
                answered.insert(*n, revocation);
                false
            }
            Ok(Err(rejection)) => panic!("{rejection:?}"),
            Err(oneshot::error::TryRecvError::Empty) => true,
            Err(oneshot::error::TryRecvError::Closed) => false,
        });
    }
}

#[derive(Debug)]
struct Model(StoreOptions);

impl Model {
    fn new() -> Self {
        Self(StoreOptions { segment_bytes: 4 * 1024, checkpoint_bytes: 3 * 1024, ..small() })
    }

    fn harness(&self, disk: &SimDisk) -> Result<Harness<SimDisk>, String> {
        Harness::try_open(&Arc::new(disk.clone()), &self.0, START).map_err(|error| error.to_string())
    }
}

impl CrashTest for Model {
    type Promised = Promised;

    fn run(&self, disk: &SimDisk) -> Promised {
        let mut promised = Promised::default();
        if let Ok(mut harness) = self.harness(disk)
            && promised.run(&mut harness).is_err()
        {
            promised.listen();
        }
        promised
    }

    fn open(&self, disk: &SimDisk) {
        drop(self.harness(disk));
    }

    fn check(&self, disk: &SimDisk, promised: &Promised, _: &mut SmallRng) -> Result<(), String> {
        let harness = self.harness(disk)?;
        if harness.report.left_out != 0 {
            return Err(format!("damage: {:?}", harness.report));
        }
        for n in 0..DEVICES {
            let kept = harness.engine.revocation(&device(n));
            let answered = promised.answered.get(&n).copied().unwrap_or_default();
            let tried = promised.tried.get(&n).cloned().unwrap_or_default();
            if kept.min_epoch < answered.min_epoch {
                return Err(format!("device {n}: {kept:?} is kept, {answered:?} was answered"));
            }
            if kept != Revocation::default() && !tried.contains(&kept) {
                return Err(format!("device {n}: {kept:?} was never asked for"));
            }
        }
        Ok(())
    }
}

#[test]
fn revocations_hold_wherever_it_crashes() {
    let boundaries = everywhere(1, &SimDisk::new(), &Model::new());
    println!("{} boundaries", boundaries.unwrap_or_else(|violation| panic!("{violation}")));
}
