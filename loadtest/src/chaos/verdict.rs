//! What devices saw against what routers were told: the verdict over a run. Pure.

use mooring::push::{Failure, Refusal};
use mooring::wire::pb::device::EventType;
use mooring::wire::pb::router::{ReceiptEvent, RejectCode};
use serde::Serialize;

use super::device_log::DeviceLog;
use super::order::Order;
use super::outages::Outages;
use super::phones::device_id;
use super::router_log::{Accepted, Batch, End, Kept, RouterLog, Target};

/// Milliseconds.
type Millis = u64;

/// Within so many milliseconds of its cause an end is reported (promise 5).
const REPORTED_MS: Millis = 1_000;
/// Findings that are told in words.
const TOLD: usize = 20;

/// What was broken, and how much was tried.
#[derive(Clone, Default, Debug, Serialize)]
pub(super) struct Verdict {
    /// Accepted, and neither arrived nor ended for a reason that this run gave; clicks and cleans without a receipt; dropped events.
    pub(super) lost: u64,
    /// Written after the expiry, or an expiry that was reported too late.
    pub(super) late: u64,
    /// Messages on a session or events of a stream in another order than that of the journal ([`Order`]).
    pub(super) reordered: u64,
    /// Written again after the arrival was confirmed, or too often on one session.
    pub(super) duplicates: u64,
    /// Two different ends, ends of nothing, clicks and cleans that nobody made or that were counted twice, counts that don't add up, refusals
    /// without a reason.
    pub(super) identity_violations: u64,
    pub(super) batches: u64,
    /// Batches that were accepted in several parts.
    pub(super) in_parts: u64,
    pub(super) targets: u64,
    pub(super) accepted: u64,
    pub(super) arrived: u64,
    pub(super) expired: u64,
    pub(super) revoked: u64,
    /// Retention 0, and not there, or gone before it arrived.
    pub(super) not_connected: u64,
    pub(super) refused: u64,
    /// Batches that were refused because they had expired on the way.
    pub(super) rejected: u64,
    pub(super) put_off: u64,
    pub(super) sessions: u64,
    pub(super) redelivered: u64,
    pub(super) events_repeated: u64,
    /// Clicks and cleans that routers were told of.
    pub(super) receipts: u64,
    /// The longest time from an expiry to its report, by time in which all worked, milliseconds.
    pub(super) longest_report_ms: Millis,
    /// The first findings, in words.
    #[serde(skip)]
    pub(super) findings: Vec<String>,
}

/// One edge with all its peers, in the end.
pub(super) struct Ring<'a> {
    pub(super) routers: Vec<&'a RouterLog>,
    /// By number.
    pub(super) devices: Vec<&'a DeviceLog>,
    /// When the edge did not run.
    pub(super) edge: &'a Outages,
    /// By router: when it was not there.
    pub(super) away: Vec<&'a Outages>,
    /// Targets of a batch that the edge takes in one piece.
    pub(super) part_targets: usize,
    /// Milliseconds that a busy machine may add.
    pub(super) slack: Millis,
}

impl std::ops::AddAssign for Verdict {
    fn add_assign(&mut self, other: Self) {
        for (sum, more) in [
            (&mut self.lost, other.lost),
            (&mut self.late, other.late),
            (&mut self.reordered, other.reordered),
            (&mut self.duplicates, other.duplicates),
            (&mut self.identity_violations, other.identity_violations),
            (&mut self.batches, other.batches),
            (&mut self.in_parts, other.in_parts),
            (&mut self.targets, other.targets),
            (&mut self.accepted, other.accepted),
            (&mut self.arrived, other.arrived),
            (&mut self.expired, other.expired),
            (&mut self.revoked, other.revoked),
            (&mut self.not_connected, other.not_connected),
            (&mut self.refused, other.refused),
            (&mut self.rejected, other.rejected),
            (&mut self.put_off, other.put_off),
            (&mut self.sessions, other.sessions),
            (&mut self.redelivered, other.redelivered),
            (&mut self.events_repeated, other.events_repeated),
            (&mut self.receipts, other.receipts),
        ] {
            *sum += more;
        }
        self.longest_report_ms = self.longest_report_ms.max(other.longest_report_ms);
        self.findings.extend(other.findings);
    }
}

impl Verdict {
    /// Whether nothing was broken.
    pub(super) fn is_clean(&self) -> bool {
        self.lost + self.late + self.reordered + self.duplicates + self.identity_violations == 0
    }

    /// Adds what one ring shows.
    pub(super) fn judge(&mut self, ring: &Ring<'_>) {
        self.receipts(ring);
        let mut order = Order::new(ring.part_targets);
        for (router, away) in ring.routers.iter().zip(&ring.away) {
            self.router(router);
            for batch in &router.batches {
                self.batch(ring, batch, away);
                self.place(&mut order, batch);
            }
        }
        for (number, device) in ring.devices.iter().enumerate() {
            self.sessions += device.sessions();
            self.redelivered += device.redelivered;
            for message in &device.duplicates {
                self.duplicates += 1;
                self.find(|| format!("device {number} got message {message} again"));
            }
            for message in device.late(ring.edge, ring.slack) {
                self.late += 1;
                self.find(|| format!("device {number} got message {message} after its expiry"));
            }
            for message in device.messages().filter(|message| !order.has(*message, number as u32)) {
                self.violation(|| {
                    format!("device {number} got message {message}, which was not accepted for it")
                });
            }
        }
        for (number, message) in order.reordered(&ring.devices) {
            self.reordered += 1;
            self.find(|| format!("device {number} got message {message} behind a younger one"));
        }
    }

    /// The place of an accepted batch in the order.
    fn place(&mut self, order: &mut Order, batch: &Batch) {
        let Some(accepted) = batch.accepted else { return };
        self.in_parts += u64::from(accepted.first < accepted.last);
        if !order.accepted(batch.message, accepted, &batch.devices, &batch.targets) {
            self.violation(|| {
                format!(
                    "message {} was not accepted part by part, and before its ends: {accepted:?}",
                    batch.message
                )
            });
        }
    }

    /// Each click and clean has one receipt, and each receipt a click or clean.
    fn receipts(&mut self, ring: &Ring<'_>) {
        let mut told = 0;
        for (number, device) in ring.devices.iter().enumerate() {
            let id = device_id(number as u32);
            let known = |&(message, event): &(u64, EventType)| {
                let event = match event {
                    EventType::Clean => ReceiptEvent::Clean,
                    _ => ReceiptEvent::Click,
                };
                ring.routers.iter().any(|router| router.was_told(message, &id, event))
            };
            let without: Vec<_> = device.reactions().iter().filter(|made| !known(made)).collect();
            told += device.reactions().len() - without.len();
            // Which ones its library could not take isn't known.
            let lost = (without.len() as u64).saturating_sub(device.dropped);
            self.lost += lost;
            if lost > 0 {
                self.find(|| format!("of device {number} routers were not told: {without:?}"));
            }
        }
        let all: usize = ring.routers.iter().map(|router| router.reactions()).sum();
        self.receipts += all as u64;
        if all > told {
            self.identity_violations += (all - told) as u64;
            self.find(|| format!("{all} clicks and cleans were told, of which devices made {told}"));
        }
    }

    /// One more thing that doesn't add up.
    pub(super) fn violation(&mut self, what: impl FnOnce() -> String) {
        self.identity_violations += 1;
        self.find(what);
    }

    fn router(&mut self, router: &RouterLog) {
        self.reordered += router.reordered;
        self.lost += router.gaps;
        self.identity_violations += router.conflicts + router.foreign;
        self.events_repeated += router.repeated;
        self.put_off += router.put_off;
        let odd = (router.reordered, router.gaps, router.conflicts, router.foreign);
        if odd != (0, 0, 0, 0) {
            self.find(|| format!("a router counted (reordered, gaps, conflicts, foreign): {odd:?}"));
        }
    }

    fn batch(&mut self, ring: &Ring<'_>, batch: &Batch, away: &Outages) {
        let message = batch.message;
        self.batches += 1;
        self.targets += batch.targets.len() as u64;
        let accepted = match (batch.accepted, batch.rejected) {
            (Some(accepted), _) => accepted,
            (None, Some(RejectCode::Expired)) if batch.kept != Kept::Long => {
                self.rejected += 1;
                return;
            }
            (None, rejected) => {
                self.lost += batch.targets.len() as u64;
                self.find(|| format!("the batch of message {message} was not taken: {rejected:?}"));
                return;
            }
        };
        for (target, number) in batch.targets.iter().zip(&batch.devices) {
            match target {
                Target::Refused(Refusal::Offline | Refusal::OverQuota) => self.refused += 1,
                Target::Refused(reason) => {
                    self.violation(|| {
                        format!("message {message} for device {number} was refused: {reason:?}")
                    });
                }
                Target::Open => {
                    self.accepted += 1;
                    self.lost += 1;
                    self.find(|| format!("message {message} ({accepted:?}) for device {number} has no end"));
                }
                Target::Ended(end) => {
                    self.accepted += 1;
                    self.ended(ring, batch, *number, *end, accepted, away);
                }
            }
        }
    }

    fn ended(
        &mut self,
        ring: &Ring<'_>,
        batch: &Batch,
        number: u32,
        end: End,
        accepted: Accepted,
        away: &Outages,
    ) {
        let (message, expiry) = (batch.message, accepted.expires_at);
        let told = |what: &str| format!("message {message} for device {number} {what}");
        if end.sent > expiry && batch.kept != Kept::Online {
            self.late += 1;
            self.find(|| told("was written after its expiry, as the edge says itself"));
        }
        match end.failure {
            None => {
                self.arrived += 1;
                if !ring.devices.get(number as usize).is_some_and(|device| device.has(message)) {
                    self.lost += 1;
                    self.find(|| told("has arrived, the edge says, and the device does not have it"));
                }
            }
            Some(Failure::Expired) if batch.kept == Kept::Short && end.told + ring.slack >= expiry => {
                self.expired += 1;
                // What a part that came too late is for expires as that is taken.
                let due = expiry.max(accepted.at);
                let after = ring.edge.whole(away, due, end.told);
                self.longest_report_ms = self.longest_report_ms.max(after);
                if after > REPORTED_MS + ring.slack {
                    self.late += 1;
                    self.find(|| told(&format!("expired, which was reported {after} ms later")));
                }
            }
            Some(Failure::Revoked) if batch.revoked => self.revoked += 1,
            Some(Failure::Offline | Failure::Unacknowledged) if batch.kept == Kept::Online => {
                self.not_connected += 1;
            }
            Some(failure) => {
                self.lost += 1;
                self.find(|| told(&format!("({:?}) ended as {failure:?}", batch.kept)));
            }
        }
    }

    fn find(&mut self, what: impl FnOnce() -> String) {
        if self.findings.len() < TOLD {
            self.findings.push(what());
        }
    }
}

#[cfg(test)]
mod tests {
    use mooring::wire::pb::device::Push;
    use mooring::wire::pb::router::{BatchAccepted, BatchRejected, DeliverBatch, Refused};
    use mooring::wire::router::told::Told;

    use super::super::phones::device_id;
    use super::super::router_log::tests::{accepted, arrived, events, failed, made, receipt};
    use super::*;

    const SLACK: Millis = 100;

    fn judged(router: &RouterLog, device: &DeviceLog) -> Verdict {
        let (mut verdict, all) = (Verdict::default(), Outages::default());
        verdict.judge(&Ring {
            routers: vec![router],
            devices: vec![device],
            edge: &all,
            away: vec![&all],
            part_targets: 2,
            slack: SLACK,
        });
        verdict
    }

    fn sums(verdict: &Verdict) -> [u64; 5] {
        let Verdict { lost, late, reordered, duplicates, identity_violations, .. } = *verdict;
        [lost, late, reordered, duplicates, identity_violations]
    }

    /// Message 1, which expires at 1,000, for device 0.
    fn one(kept: Kept) -> RouterLog {
        let mut router = made(1, &[0], kept);
        router.accepted(&accepted(1));
        router
    }

    fn device(messages: &[u64]) -> DeviceLog {
        let mut device = DeviceLog::default();
        device.welcomed();
        for message_id in messages {
            device.came(&Push { message_id: *message_id, ..Push::default() }, 10, false);
        }
        device
    }

    #[test]
    fn what_arrived_where_it_is_said_to_have_arrived_is_clean() {
        let mut router = one(Kept::Long);
        router.events(&events(8, arrived(0)), 50);
        let verdict = judged(&router, &device(&[1]));
        assert!(verdict.is_clean(), "{:?}", verdict.findings);
        assert_eq!((verdict.accepted, verdict.arrived), (1, 1));
    }

    #[test]
    fn lost_is_what_has_no_end_or_an_end_that_nobody_caused_or_is_not_where_it_arrived() {
        assert_eq!(sums(&judged(&one(Kept::Long), &device(&[1]))), [1, 0, 0, 0, 0]);
        let mut router = one(Kept::Long);
        router.events(&events(8, arrived(0)), 50);
        assert_eq!(sums(&judged(&router, &device(&[]))), [1, 0, 0, 0, 0]);
        for (kept, failure) in [
            (Kept::Long, Failure::Expired),
            (Kept::Long, Failure::Storage),
            (Kept::Long, Failure::Revoked),
            (Kept::Long, Failure::Offline),
            (Kept::Short, Failure::Unacknowledged),
            (Kept::Online, Failure::Expired),
        ] {
            let mut router = one(kept);
            router.events(&events(8, failed(1, failure)), 1_010);
            assert_eq!(sums(&judged(&router, &device(&[]))), [1, 0, 0, 0, 0], "{kept:?} {failure:?}");
        }
        // Before its time.
        let mut router = one(Kept::Short);
        router.events(&events(8, failed(1, Failure::Expired)), 500);
        assert_eq!(sums(&judged(&router, &device(&[]))), [1, 0, 0, 0, 0]);
    }

    #[test]
    fn a_batch_that_was_refused_for_good_is_lost_unless_it_had_expired() {
        for (kept, code, lost) in [
            (Kept::Short, RejectCode::Expired, 0),
            (Kept::Long, RejectCode::Expired, 1),
            (Kept::Short, RejectCode::TooOld, 1),
        ] {
            let mut router = made(1, &[0], kept);
            let batch_id = "b".into();
            router.rejected(&BatchRejected { batch_id, code: code.into(), ..BatchRejected::default() });
            assert_eq!(judged(&router, &device(&[])).lost, lost, "{kept:?} {code:?}");
        }
    }

    #[test]
    fn ends_that_the_run_caused_are_clean() {
        for (kept, failure) in [
            (Kept::Short, Failure::Expired),
            (Kept::Online, Failure::Offline),
            (Kept::Online, Failure::Unacknowledged),
            (Kept::Short, Failure::Revoked),
        ] {
            let mut router = one(kept);
            router.batches[0].revoked = failure == Failure::Revoked;
            router.events(&events(8, failed(1, failure)), 1_010);
            let verdict = judged(&router, &device(&[]));
            assert!(verdict.is_clean(), "{:?}", verdict.findings);
        }
    }

    #[test]
    fn late_is_an_expiry_that_is_reported_too_long_after_it() {
        let mut router = one(Kept::Short);
        let told = 1_000 + REPORTED_MS + SLACK + 1;
        router.events(&events(8, failed(1, Failure::Expired)), told);
        assert_eq!(sums(&judged(&router, &device(&[]))), [0, 1, 0, 0, 0]);
    }

    #[test]
    fn a_part_that_is_taken_after_the_expiry_is_reported_from_then_on() {
        let taken = 5_000;
        for (after, late) in [(REPORTED_MS + SLACK, 0), (REPORTED_MS + SLACK + 1, 1)] {
            let mut router = made(1, &[0, 1, 2], Kept::Short);
            router.events(&events(6, failed(0b11, Failure::Expired)), 1_010);
            router.accepted(&BatchAccepted { first_sequence: 5, accepted_at: taken, ..accepted(3) });
            router.events(&events(8, failed(0b100, Failure::Expired)), taken + after);
            let verdict = judged(&router, &device(&[]));
            assert_eq!(sums(&verdict), [0, late, 0, 0, 0], "{:?}", verdict.findings);
        }
    }

    #[test]
    fn order_is_of_parts() {
        let all = [0, 1, 2];
        let judged = |first_sequence, came: &[u64]| {
            let mut router = made(1, &all, Kept::Long);
            router.accepted(&BatchAccepted { first_sequence, ..accepted(3) });
            let between =
                DeliverBatch { batch_id: "between".into(), message_id: 2, ..DeliverBatch::default() };
            router.made(&between, vec![0], Kept::Long);
            let answer = BatchAccepted { batch_id: "between".into(), sequence: 6, ..accepted(1) };
            router.accepted(&answer);
            for ordinal in 0..3 {
                router.events(&events(8, arrived(ordinal)), 50);
            }
            router.batches[1].targets[0] = router.batches[0].targets[0];
            let devices = [device(came), device(&[1]), device(&[1])];
            let (mut verdict, outages) = (Verdict::default(), Outages::default());
            verdict.judge(&Ring {
                routers: vec![&router],
                devices: devices.iter().collect(),
                edge: &outages,
                away: vec![&outages],
                part_targets: 2,
                slack: SLACK,
            });
            verdict
        };
        let verdict = judged(5, &[1, 2]);
        assert!(verdict.is_clean(), "{:?}", verdict.findings);
        assert_eq!((verdict.batches, verdict.in_parts), (2, 1));
        assert_eq!(sums(&judged(5, &[2, 1])), [0, 0, 1, 0, 0]);
        // Without a place for its first part.
        assert_eq!(judged(0, &[1, 2]).identity_violations, 1 + 3);
    }

    #[test]
    fn what_was_not_accepted_must_not_arrive_and_who_is_known_must_not_be_refused_as_unknown() {
        let router = made(1, &[], Kept::Long);
        assert_eq!(judged(&router, &device(&[1])).identity_violations, 1);
        let mut router = made(1, &[0], Kept::Long);
        let refused = vec![Refused { reason: Refusal::DeviceUnknown as i32, ordinals: vec![0] }];
        router.accepted(&BatchAccepted { refused, ..accepted(0) });
        assert_eq!(sums(&judged(&router, &device(&[]))), [0, 0, 0, 0, 1]);
    }

    /// What arrived at device 0 in message 1, and how often that was clicked and told.
    fn clicked(clicks: usize, receipts: &[(u64, ReceiptEvent)]) -> Verdict {
        let mut router = one(Kept::Long);
        router.events(&events(8, arrived(0)), 50);
        for (sequence, event) in receipts {
            let device = device_id(0);
            let receipt = receipt(1, &device, *event);
            router.events(&events(*sequence, Told::Receipt(receipt)), 60);
        }
        let mut device = device(&[1]);
        (0..clicks).for_each(|_| device.reacted(1, EventType::Click));
        judged(&router, &device)
    }

    #[test]
    fn a_click_has_one_receipt() {
        let told = clicked(1, &[(9, ReceiptEvent::Click)]);
        assert!(told.is_clean(), "{:?}", told.findings);
        assert_eq!(told.receipts, 1);
        assert_eq!(sums(&clicked(1, &[])), [1, 0, 0, 0, 0], "not told");
        assert_eq!(sums(&clicked(1, &[(9, ReceiptEvent::Clean)])), [1, 0, 0, 0, 1], "told as another");
        assert_eq!(sums(&clicked(0, &[(9, ReceiptEvent::Click)])), [0, 0, 0, 0, 1], "made by nobody");
        let twice = [(9, ReceiptEvent::Click), (10, ReceiptEvent::Click)];
        assert_eq!(sums(&clicked(1, &twice)), [0, 0, 0, 0, 1], "counted twice");
        // The same record may be told again.
        let again = [(9, ReceiptEvent::Click), (9, ReceiptEvent::Click)];
        assert!(clicked(1, &again).is_clean());
    }

    #[test]
    fn a_click_that_the_library_could_not_take_or_that_came_to_nothing_needs_no_receipt() {
        let mut router = one(Kept::Long);
        router.events(&events(8, arrived(0)), 50);
        for revoked in [false, true] {
            let mut device = device(&[1]);
            device.reacted(1, EventType::Click);
            if revoked {
                device.withdrawn(1);
            }
            device.ended(u64::from(revoked));
            assert!(judged(&router, &device).is_clean());
        }
    }

    #[test]
    fn what_devices_and_routers_noted_is_in_it() {
        let mut router = one(Kept::Long);
        router.events(&events(8, arrived(0)), 50);
        (router.conflicts, router.foreign, router.reordered, router.gaps) = (1, 2, 3, 4);
        let mut device = device(&[1]);
        device.came(&Push { message_id: 1, expires_milliseconds: 5, ..Push::default() }, 500, false);
        assert_eq!(sums(&judged(&router, &device)), [4, 1, 3, 1, 3]);
    }
}
