//! The engine crashed everywhere: at every operation on the disk of a random run it dies, by its process or with the power; then
//! it is opened again and compared with what it had promised, and once more after it went on.
//!
//! What a stream's reader stored, together with what can still be read of the stream, is the whole history: the counts and the lists must follow
//! from it exactly.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::model_devices::{check_accounts, check_devices, check_rows};
use super::plan::{CONNECTED, DEVICES, History, MESSAGES, Promised, Step, placed, plan};
use super::support::{Harness, account_digest, app, batch, device};
use crate::binding::DeviceChange;
use crate::fault::{self, Fault};
use crate::ids::{DeviceKey, Seq};
use crate::push::{Accepted, Event, Failure, NewBatch, Priority, ReceiptKind, Rejection, StreamEvent};
use crate::store::disk::SyncPoint;
use crate::store::disk::crash::{CrashTest, everywhere};
use crate::store::disk::sim::{Loss, SimDisk};
use crate::store::options::{Quota, StoreOptions};
use crate::store::tables::TableKind;
use crate::store::{DeviceAck, Pulled, Query, QueryAnswer};

macro_rules! ensure {
    ($holds:expr, $($what:tt)*) => {
        if !$holds {
            return Err(format!($($what)*));
        }
    };
}

/// Few enough that it is reached.
const QUOTA: Quota = Quota { max_entries: 4, max_bytes: 1_000, drop_oldest: true };

#[derive(Debug)]
struct Model {
    steps: Vec<Step>,
    options: StoreOptions,
}

impl Model {
    fn new(seed: u64, length: usize) -> Self {
        let options = StoreOptions {
            segment_bytes: 4 * 1024,
            checkpoint_bytes: 6 * 1024,
            unmatched_per_second: u32::MAX,
            // One or two push records fit: the others are read back whenever something happens to them.
            message_cache_bytes: 400,
            // One device's row fits.
            device_cache_bytes: 300,
            app_quotas: [(app(), QUOTA)].into(),
            forget_after_ms: 3_000,
            ..super::support::small()
        };
        Self { steps: plan(seed, length), options }
    }

    fn harness(&self, disk: &SimDisk, now: u64) -> Result<Harness<SimDisk>, String> {
        let harness = Harness::try_open(&Arc::new(disk.clone()), &self.options, now);
        let harness = harness.map_err(|error| error.to_string())?;
        harness.connected.lock().expect("not poisoned").extend(CONNECTED.map(device));
        Ok(harness)
    }
}

impl CrashTest for Model {
    type Promised = Promised;

    fn run(&self, disk: &SimDisk) -> Promised {
        let mut promised = Promised::new();
        let Ok(mut harness) = self.harness(disk, promised.now) else { return promised };
        for step in &self.steps {
            if promised.step(&mut harness, step).is_err() {
                break;
            }
        }
        promised
    }

    fn open(&self, disk: &SimDisk) {
        drop(self.harness(disk, super::plan::START));
    }

    fn check(&self, disk: &SimDisk, promised: &Promised, rng: &mut SmallRng) -> Result<(), String> {
        ensure!(promised.broken.is_empty(), "{:?}", promised.broken);
        let now = promised.now;
        let mut harness = self.harness(disk, now)?;
        let report = &harness.report;
        ensure!(report.left_out == 0 && report.journal.corrupt.is_empty(), "damage: {report:?}");
        for n in 0..DEVICES {
            ensure!(
                harness.pulled(n).iter().all(|&(_, again)| again),
                "device {n}: not marked as redelivered"
            );
        }
        let mut answered = promised.answered.clone();
        verify(&mut harness, promised, &answered, false)?;
        // The router repeats everything: what was accepted is answered again, the rest is accepted now or never.
        for (id, batch) in &promised.tried {
            match (answered.get(id), harness.deliver(batch.clone())) {
                (Some(before), Ok(again)) => {
                    let same = Accepted { repeated: true, ..before.clone() };
                    ensure!(again == same, "{id}: answered {again:?}, before {before:?}");
                }
                (Some(before), Err(why)) => return Err(format!("{id}: {why:?}, before {before:?}")),
                (None, Ok(accepted)) => {
                    answered.insert(id.clone(), accepted);
                }
                (None, Err(Rejection::Expired)) => {}
                (None, Err(why)) => return Err(format!("{id}: {why:?}")),
            }
        }
        verify(&mut harness, promised, &answered, true)?;
        check_rows(&mut harness)?;
        // It goes on, and crashes once more.
        for message in [MESSAGES + 1, MESSAGES + 2] {
            let new = batch(&format!("new-{message}"), message, &[0, 1, 2], now, 3_600_000);
            harness.deliver(new).map_err(|why| format!("a new batch: {why:?}"))?;
            harness.arrive(rng.random_range(0..3), message);
            harness.settle().map_err(|error| error.to_string())?;
        }
        let before = harness.totals();
        let lists: Vec<_> = (0..DEVICES).map(|n| list(&harness, n)).collect();
        drop(harness);
        disk.crash_with(Loss::Some, rng);
        let mut harness = self.harness(disk, now)?;
        let after = harness.totals();
        ensure!(before == after, "after the second crash {after:?}, before {before:?}");
        let again: Vec<_> = (0..DEVICES).map(|n| list(&harness, n)).collect();
        ensure!(lists == again, "after the second crash {again:?}, before {lists:?}");
        Ok(())
    }
}

fn list(harness: &Harness<SimDisk>, n: u32) -> Vec<(Seq, u32)> {
    harness.pull(n).iter().map(|pulled| (pulled.batch.seq, pulled.ordinal)).collect()
}

/// What the stream says became of a target.
type Outcomes = BTreeMap<(String, u32), Vec<Result<(), Failure>>>;

/// The whole history: what the router stored, and what is kept.
fn history(harness: &Harness<SimDisk>, promised: &Promised) -> Result<History, String> {
    let bounds = harness.engine.stream_bounds("main").map_err(|error| error.to_string())?;
    ensure!(bounds.oldest <= promised.read_to, "unread events are gone: {bounds:?}");
    ensure!(bounds.cursor <= promised.acked_to.max(bounds.oldest), "the cursor ran ahead: {bounds:?}");
    let kept = placed(harness.try_stream(bounds.oldest).map_err(|error| error.to_string())?);
    for (seq, event) in promised.events.range((Seq(bounds.oldest.0 + 1), 0)..) {
        ensure!(
            kept.get(seq) == Some(event),
            "event {seq:?} was read as {event:?}, is now {:?}",
            kept.get(seq)
        );
    }
    let mut all = promised.events.clone();
    all.extend(kept);
    Ok(all)
}

fn outcomes(history: &History) -> Outcomes {
    let mut outcomes = Outcomes::new();
    for event in history.values() {
        match event {
            StreamEvent::Receipt(receipt) => {
                if let (Some(outcome), Some((id, ordinal))) = (receipt.outcome, &receipt.target) {
                    outcomes.entry((id.as_str().to_owned(), *ordinal)).or_default().push(outcome);
                }
            }
            StreamEvent::Mass(mass) => {
                for ordinal in mass.ordinals.iter() {
                    let key = (mass.batch.as_str().to_owned(), ordinal);
                    outcomes.entry(key).or_default().push(Err(mass.reason));
                }
            }
            StreamEvent::Gap(gap) => unreachable!("below every bound: {gap:?}"),
            StreamEvent::Device(_) => {}
        }
    }
    outcomes
}

/// Compares the engine with the promises. `complete`: every batch that was tried is in `answered`, or was refused for good.
fn verify(
    harness: &mut Harness<SimDisk>,
    promised: &Promised,
    answered: &BTreeMap<String, Accepted>,
    complete: bool,
) -> Result<(), String> {
    harness.settle().map_err(|error| error.to_string())?;
    let history = history(harness, promised)?;
    let outcomes = outcomes(&history);
    let pending = check_lists(harness, promised)?;
    check_devices(harness, promised, &history)?;
    check_accounts(promised, answered, &history)?;
    check_targets(promised, answered, &outcomes, &pending)?;
    check_gone(promised, &pending)?;
    check_promises(harness, promised, &history, &outcomes)?;
    check_counts(harness, &history, complete.then_some(answered))
}

/// Whether it takes the older one's place on this device, if it is accepted there.
fn takes_place(newer: &NewBatch, older: &NewBatch, key: &DeviceKey) -> bool {
    !newer.collapse_key.is_empty()
        && newer.collapse_key == older.collapse_key
        && newer.message != older.message
        && newer.targets.contains(key)
}

/// What was answered holds: nothing that was taken back is pending, nor what a newer message took the place of.
fn check_gone(promised: &Promised, pending: &BTreeSet<(String, u32, DeviceKey)>) -> Result<(), String> {
    for (id, ordinal, key) in pending {
        let Some(batch) = promised.tried.get(id) else { continue };
        let revoked = promised.revoked.contains(&batch.message.0);
        ensure!(!revoked, "{id} {ordinal}: its message was taken back");
        let Some(own) = promised.answered.get(id) else { continue };
        for (newer_id, answer) in &promised.answered {
            let Some(newer) = promised.tried.get(newer_id) else { continue };
            // These may have ended at once.
            let ended = newer.online_only
                || promised.tried_revokes.contains(&newer.message.0)
                || newer.accounts.iter().any(Option::is_some);
            if answer.seq <= own.seq || ended || !takes_place(newer, batch, key) {
                continue;
            }
            let at = newer.targets.iter().position(|target| target == key);
            let refused = answer.refused.iter().any(|(refused, _)| at == Some(*refused as usize));
            ensure!(refused, "{id} {ordinal}: {newer_id} took its place");
        }
    }
    Ok(())
}

/// Lists are in order, without doubles, and their bodies can be read.
fn check_lists(
    harness: &mut Harness<SimDisk>,
    promised: &Promised,
) -> Result<BTreeSet<(String, u32, DeviceKey)>, String> {
    let mut pending = BTreeSet::new();
    for n in 0..DEVICES {
        let list = harness.pull(n);
        let rank = |pulled: &Pulled| (pulled.batch.priority == Priority::Normal, pulled.batch.seq);
        let seqs: Vec<_> = list.iter().map(rank).collect();
        ensure!(seqs.is_sorted_by(|a, b| a < b), "device {n}: out of order: {seqs:?}");
        let messages: BTreeSet<_> = list.iter().map(|pulled| pulled.batch.message).collect();
        ensure!(messages.len() == list.len(), "device {n}: a message is pending twice: {seqs:?}");
        let account = harness.state_of(n).and_then(|state| state.bindings?.account.clone());
        for pulled in list {
            let of_account = promised.account_of(&pulled);
            let is_bound = of_account == account.as_deref().map(account_digest);
            ensure!(of_account.is_none() || is_bound, "device {n}: a message of {of_account:?}");
            let id = pulled.batch.id.as_str().to_owned();
            let body = harness.engine.read_body(&pulled.batch);
            let body = body.map_err(|error| format!("{id}: its body can't be read: {error}"))?;
            let right = promised.tried.get(&id).map(|batch| &batch.body);
            ensure!(right.is_none_or(|right| *right == body), "{id}: another body");
            pending.insert((id, pulled.ordinal, device(n)));
        }
    }
    Ok(pending)
}

/// Every accepted target is pending, or has exactly one end.
fn check_targets(
    promised: &Promised,
    answered: &BTreeMap<String, Accepted>,
    outcomes: &Outcomes,
    pending: &BTreeSet<(String, u32, DeviceKey)>,
) -> Result<(), String> {
    for (key @ (id, _), ends) in outcomes {
        ensure!(ends.len() == 1, "{key:?} ended more than once: {ends:?}");
        ensure!(promised.tried.contains_key(id), "{key:?} ended, and nobody had sent it");
    }
    for (id, answer) in answered {
        let Some(batch) = promised.tried.get(id) else { continue };
        for (ordinal, key) in (0u32..).zip(&batch.targets) {
            let target = (id.clone(), ordinal);
            let ends = outcomes.get(&target);
            if answer.refused.iter().any(|&(refused, _)| refused == ordinal) {
                ensure!(ends.is_none(), "{target:?} was refused, and ended: {ends:?}");
                continue;
            }
            let waits = pending.contains(&(id.clone(), ordinal, *key));
            let n = (0..DEVICES).find(|&n| device(n) == *key).unwrap_or(DEVICES);
            match ends.map(|ends| ends[0]) {
                // What only connected devices get isn't shown again after a recovery.
                None => ensure!(waits || batch.online_only, "{target:?} is lost"),
                Some(end) => {
                    ensure!(!waits, "{target:?} is pending, and ended: {end:?}");
                    let possible = match end {
                        Ok(()) => promised.tried_acks.contains(&(n, batch.message.0)),
                        Err(Failure::Expired) => !batch.online_only && batch.expires_at <= promised.now,
                        Err(Failure::Offline | Failure::Unacknowledged) => batch.online_only,
                        Err(Failure::Revoked) => promised.tried_revokes.contains(&batch.message.0),
                        Err(Failure::Replaced) => {
                            promised.tried.values().any(|newer| takes_place(newer, batch, key))
                        }
                        // Somebody newer got it.
                        Err(Failure::OverQuota) => true,
                        Err(Failure::PushDisabled) => promised.tried_switches.contains(&(n, false)),
                        Err(Failure::Unbound) => {
                            batch.accounts.get(ordinal as usize).is_some_and(Option::is_some)
                        }
                        Err(Failure::Reinstalled) => promised.tried_lost.contains(&n),
                        Err(Failure::Forgotten) => !CONNECTED.contains(&n),
                        Err(_) => false,
                    };
                    ensure!(possible, "{target:?} can't have ended like this: {end:?}");
                }
            }
        }
    }
    Ok(())
}

/// What was confirmed or told is in the history, and who was seen is known.
fn check_promises(
    harness: &mut Harness<SimDisk>,
    promised: &Promised,
    history: &History,
    outcomes: &Outcomes,
) -> Result<(), String> {
    let mut events = BTreeSet::new();
    for event in history.values() {
        if let StreamEvent::Receipt(receipt) = event {
            events.insert((receipt.device_id.to_string(), receipt.message, receipt.kind as u8));
        }
    }
    // An unknown device has nothing to lose.
    let of_known = |ack: &&DeviceAck| CONNECTED.contains(&ack.session.slot);
    for ack in promised.confirmed.iter().filter(of_known) {
        for event in &ack.events {
            let kind = match event.event {
                Event::Arrive => ReceiptKind::Arrive,
                Event::Click => ReceiptKind::Click,
                Event::Clean => ReceiptKind::Clean,
            };
            let key = (format!("device-{}", ack.session.slot), event.message, kind as u8);
            ensure!(events.contains(&key), "a confirmed ack is forgotten: {key:?}");
        }
    }
    for (key, seq, reason) in &promised.ended {
        let batch = promised.answered.iter().find(|(_, answer)| answer.seq == *seq);
        let Some(batch) = batch.and_then(|(id, _)| promised.tried.get(id)) else { continue };
        let told = (0u32..).zip(&batch.targets).filter(|(_, target)| *target == key);
        let told = told.filter_map(|(ordinal, _)| outcomes.get(&(batch.id.as_str().to_owned(), ordinal)));
        ensure!(told.flatten().any(|end| *end == Err(*reason)), "a told end is forgotten: {seq} {reason:?}");
    }
    let keys = (0..DEVICES).map(device).collect();
    let QueryAnswer::Devices(known) = harness.query(Query::Devices(keys)) else {
        return Err("no answer".into());
    };
    let waiting: u64 = known.iter().flatten().map(|device| u64::from(device.pending)).sum();
    let counted = harness.totals().pending;
    ensure!(waiting == counted, "{waiting} entries are in lists, {counted} are counted");
    Ok(())
}

/// The counts follow from the history.
fn check_counts(
    harness: &mut Harness<SimDisk>,
    history: &History,
    answered: Option<&BTreeMap<String, Accepted>>,
) -> Result<(), String> {
    let mut sum = crate::push::Counts::default();
    for message in 1..=MESSAGES {
        let Some(state) = harness.message(message, None) else { continue };
        let counts = state.counts;
        ensure!(counts.identity_holds(), "message {message}: {counts:?}");
        let mut said = crate::push::Counts { ..counts.clone() };
        (said.arrived, said.failed, said.clicked, said.cleaned, said.late) = (0, [0; 11], 0, 0, 0);
        let mut sent = BTreeSet::new();
        for event in history.values() {
            match event {
                StreamEvent::Mass(mass) if mass.message.0 == message => {
                    said.failed[mass.reason as usize - 1] += u64::from(mass.count);
                }
                StreamEvent::Receipt(receipt) if receipt.message.0 == message && !receipt.unmatched => {
                    match receipt.outcome {
                        Some(Ok(())) => said.arrived += 1,
                        Some(Err(reason)) => said.failed[reason as usize - 1] += 1,
                        None => {}
                    }
                    said.clicked += u64::from(receipt.kind == ReceiptKind::Click);
                    said.cleaned += u64::from(receipt.kind == ReceiptKind::Clean);
                    said.late += u64::from(receipt.late);
                    if receipt.says_sent() {
                        sent.insert(receipt.device_id.clone());
                    }
                }
                _ => {}
            }
        }
        said.sent = sent.len() as u64;
        ensure!(said == counts, "message {message}: counted {counts:?}, the stream says {said:?}");
        sum.add(&counts);
    }
    let totals = harness.totals();
    ensure!(totals.identity_holds(), "{totals:?}");
    ensure!(totals == sum, "in total {totals:?}, over the messages {sum:?}");
    let days = harness.days(30);
    let mut over_days = crate::push::Counts { pending: totals.pending, ..Default::default() };
    for day in &days {
        over_days.add(&day.counts);
    }
    ensure!(totals == over_days, "in total {totals:?}, over the days {over_days:?}");
    if let Some(answered) = answered {
        let accepted: u64 = answered.values().map(|answer| u64::from(answer.accepted)).sum();
        ensure!(accepted == totals.accepted, "{accepted} were answered, {} are counted", totals.accepted);
    }
    Ok(())
}

fn holds(seed: u64, length: usize) {
    let boundaries = everywhere(seed, &SimDisk::new(), &Model::new(seed, length));
    let boundaries = boundaries.unwrap_or_else(|violation| panic!("{violation}"));
    println!("seed {seed}: {boundaries} boundaries");
}

#[test]
fn promises_hold_wherever_it_crashes_1() {
    holds(1, 120);
}

#[test]
fn promises_hold_wherever_it_crashes_2() {
    holds(2, 160);
}

#[test]
fn promises_hold_wherever_it_crashes_3() {
    holds(3, 200);
}

#[test]
fn a_run_does_everything_that_is_to_be_proved() {
    const ENDS: [Failure; 4] = [Failure::Revoked, Failure::Replaced, Failure::OverQuota, Failure::Expired];
    let mut ends = [0; 4];
    let (mut changes, mut reasons) = (BTreeSet::new(), BTreeSet::new());
    let mut chosen = 0;
    for seed in 1..=3 {
        let model = Model::new(seed, 300);
        let disk = SimDisk::new();
        let mut promised = Promised::new();
        let mut harness = model.harness(&disk, promised.now).expect("opens");
        for step in &model.steps {
            promised.step(&mut harness, step).expect("the disk works");
            let most = (0..DEVICES).map(|n| list(&harness, n).len()).max();
            assert!(most <= Some(QUOTA.max_entries), "no list is longer than the quota");
        }
        for (ends, reason) in ends.iter_mut().zip(ENDS) {
            *ends += harness.totals().failed[reason as usize - 1];
        }
        println!("seed {seed}: {:?}", harness.engine.stats().all());
        let figure = |name| {
            let all = harness.engine.stats().all();
            all.into_iter().find(|figure| figure.0 == name).map_or(0, |figure| figure.1)
        };
        for name in [
            "checkpoints",
            "table_writes",
            "table_reads",
            "device_row_reads",
            "copied_bytes",
            "segments_removed",
            "batches",
            "repeats",
        ] {
            assert!(figure(name) > 1, "seed {seed}: {name}");
        }
        let history = history(&harness, &promised).expect("a history");
        chosen += check_accounts(&promised, &promised.answered, &history).expect("the right one");
        for event in history.values() {
            match event {
                StreamEvent::Device(event) => {
                    changes.insert(DeviceChange::LABELS[event.change.index()]);
                }
                StreamEvent::Receipt(receipt) => reasons.extend(receipt.outcome.and_then(Result::err)),
                StreamEvent::Mass(mass) => {
                    reasons.insert(mass.reason);
                }
                StreamEvent::Gap(gap) => panic!("{gap:?}"),
            }
        }
    }
    for change in ["registered", "attributes", "switch", "bound", "unbound", "forgotten"] {
        assert!(changes.contains(change), "{change}: {changes:?}");
    }
    for reason in [Failure::Unbound, Failure::Reinstalled, Failure::Forgotten, Failure::PushDisabled] {
        assert!(reasons.contains(&reason), "{reason:?}: {reasons:?}");
    }
    assert!(ends.iter().all(|count| *count > 1), "{ENDS:?}: {ends:?}");
    assert!(chosen > 5, "a batch named a device under a stale account and a better one {chosen} times");
}

/// The mistake is found by one of some seeds.
fn is_found(mistake: Fault) {
    fault::make(Some(mistake));
    let found = (1..=4).find_map(|seed| everywhere(seed, &SimDisk::new(), &Model::new(seed, 200)).err());
    println!("{}", found.expect("the mistake breaks a promise"));
}

#[test]
fn telling_before_the_commit_is_found() {
    is_found(Fault::TellBeforeCommit);
}

#[test]
fn forgetting_copies_is_found() {
    is_found(Fault::ForgetCopies);
}

#[test]
fn ordering_by_place_is_found() {
    is_found(Fault::OrderByPlace);
}

#[test]
fn applying_records_twice_is_found() {
    is_found(Fault::IgnoreFloors);
}

#[test]
fn counting_what_the_tables_reflect_is_found() {
    is_found(Fault::IgnoreApplied);
}

#[test]
fn forgetting_what_is_not_written_is_found() {
    is_found(Fault::ForgetChanged);
}

#[test]
fn letting_go_of_changed_rows_is_found() {
    is_found(Fault::ForgetChangedRows);
}

#[test]
fn leaving_out_what_rows_lack_at_a_start_is_found() {
    is_found(Fault::SkipRows);
}

#[test]
fn losing_what_a_returning_device_is_bound_to_is_found() {
    is_found(Fault::LoseBindings);
}

#[test]
fn dropping_held_entries_is_found() {
    is_found(Fault::DropHeld);
}

/// Checkpoints that are ahead of the tables are not made; but if there were one, the journal brings the tables up.
#[test]
fn promises_hold_with_tables_behind_the_checkpoint() {
    fault::make(Some(Fault::NameEarly));
    holds(5, 140);
}

/// The tables' own syncs matter as well: what is trimmed rests on them.
#[test]
fn leaving_out_the_tables_sync_is_found() {
    let disk = SimDisk::new();
    disk.skip(SyncPoint::TablesContent);
    let found = (1..=3).find_map(|seed| everywhere(seed, &disk, &Model::new(seed, 160)).err());
    println!("{}", found.expect("a lost sync breaks a promise"));
}

/// The library itself, its file on the disk that crashes: fewer steps, as a transaction is many operations.
#[test]
fn promises_hold_wherever_it_crashes_with_the_library() {
    let mut model = Model::new(4, 40);
    model.options.tables = TableKind::Library;
    let boundaries = everywhere(4, &SimDisk::new(), &model).unwrap_or_else(|violation| panic!("{violation}"));
    println!("{boundaries} boundaries");
}

#[test]
fn forgetting_what_was_taken_back_is_found() {
    is_found(Fault::ForgetRecalls);
}

#[test]
fn keeping_what_is_of_a_former_account_is_found() {
    fault::make(Some(Fault::KeepUnbound));
    let mut rng = SmallRng::seed_from_u64(1);
    // No crash is needed for that.
    let found = (1..=40).find_map(|seed| {
        let (model, disk) = (Model::new(seed, 300), SimDisk::new());
        let promised = model.run(&disk);
        model.check(&disk, &promised, &mut rng).err()
    });
    println!("{}", found.expect("the mistake breaks a promise"));
}

#[test]
fn leaving_out_the_commits_sync_is_found() {
    let disk = SimDisk::new();
    disk.skip(SyncPoint::GroupCommit);
    let found = everywhere(1, &disk, &Model::new(1, 120)).expect_err("a lost sync breaks a promise");
    println!("{found}");
}
