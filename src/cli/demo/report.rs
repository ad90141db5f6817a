//! The end of the demo: three accounts side by side, and what is wrong with them.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::questions::Compared;
use super::show::Timed;
use crate::client::device;
use crate::client::router;

/// An answer of `/v1/totals`.
#[derive(Debug)]
pub(super) struct Check {
    pub(super) at: String,
    pub(super) holds: bool,
    pub(super) totals: Value,
}

/// What happened.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) lost: u64,
    pub(super) duplicates: u64,
    /// Messages that an app was handed before one of the same priority that was accepted earlier.
    pub(super) out_of_order: u64,
    /// How many there have to be in a line of the account, by its name.
    pub(super) expected: BTreeMap<String, u64>,
    pub(super) devices: device::Tally,
    /// All routers together.
    pub(super) router: router::Tally,
    /// Devices that registered.
    pub(super) registered: u64,
    /// Devices by the transport of their last session, as they know it.
    pub(super) transports: BTreeMap<&'static str, u64>,
    /// The same, as the edge counts its sessions.
    pub(super) sessions: BTreeMap<&'static str, u64>,
    /// Bindings, as the routers were told.
    pub(super) bound: u64,
    /// Push switches that went off, as the routers were told.
    pub(super) switched_off: u64,
    /// Batches that had to be rejected: of a suspended app.
    pub(super) rejected: u64,
    /// (device, message): told that it was taken back; how many had to be.
    pub(super) told: (u64, u64),
    /// Devices that are connected in the end, as a router that follows presence knows.
    pub(super) presence: u64,
    /// Answers about devices and messages.
    pub(super) compared: Compared,
    pub(super) checks: Vec<Check>,
    /// The answer of `/v1/shards`.
    pub(super) shards: Value,
    pub(super) expected_shards: u32,
    /// The edge left by itself on SIGTERM.
    pub(super) graceful: bool,
    /// In their order.
    pub(super) stages: Vec<Timed>,
    pub(super) seconds: f64,
}

/// One line of the account; `None`: that side doesn't count it.
pub(super) struct Row {
    pub(super) name: String,
    /// How many there have to be.
    pub(super) plan: Option<u64>,
    pub(super) edge: u64,
    pub(super) router: Option<u64>,
    pub(super) devices: Option<u64>,
}

impl Row {
    /// Whether all who count it count the same.
    pub(super) fn agrees(&self) -> bool {
        [self.plan, self.router, self.devices].into_iter().flatten().all(|n| n == self.edge)
    }

    /// Whether it is part of a sum above.
    pub(super) fn is_part(&self) -> bool {
        self.name.starts_with("refused: ")
            || self.name.starts_with("failed: ")
            || ["arrived", "pending"].contains(&&*self.name)
    }
}

impl Report {
    fn totals(&self) -> &Value {
        self.checks.last().map_or(&Value::Null, |check| &check.totals)
    }

    fn total(&self, name: &str) -> u64 {
        self.totals()[name].as_u64().unwrap_or_default()
    }

    fn by_reason(&self, name: &str) -> Vec<(String, u64)> {
        let reasons = self.totals()[name].as_object().into_iter().flatten();
        reasons
            .filter_map(|(reason, n)| Some((reason.clone(), n.as_u64()?)))
            .filter(|(_, n)| *n > 0)
            .collect()
    }

    pub(super) fn rows(&self) -> Vec<Row> {
        let (router, devices) = (&self.router, &self.devices);
        let row = |name: &str, edge, router, devices| {
            let plan = self.expected.get(name).copied();
            Row { name: name.to_owned(), plan, edge, router, devices }
        };
        let mut rows =
            vec![row("targets", self.total("targets"), Some(router.targets - router.targets_rejected), None)];
        let ours = |ours: Vec<(&'static str, u64)>, reason: &str| {
            Some(ours.iter().find(|(name, _)| *name == reason).map_or(0, |(_, n)| *n))
        };
        for (reason, n) in self.by_reason("refused") {
            let router = ours(router.refusals().collect(), &reason);
            rows.push(row(&format!("refused: {reason}"), n, router, None));
        }
        rows.push(row("accepted", self.total("accepted"), Some(router.accepted), None));
        rows.push(row("arrived", self.total("arrived"), Some(router.arrived), Some(devices.arrived)));
        for (reason, n) in self.by_reason("failed") {
            let router = ours(router.failures().collect(), &reason);
            rows.push(row(&format!("failed: {reason}"), n, router, None));
        }
        rows.push(row("pending", self.total("pending"), Some(router.pending()), None));
        rows.push(row("receipts: sent", self.total("sent"), Some(router.sent), None));
        rows.push(row("receipts: arrive", self.total("arrived"), Some(router.arrive), Some(devices.arrived)));
        rows.push(row("receipts: click", self.total("clicked"), Some(router.click), Some(devices.clicked)));
        rows.push(row("receipts: clean", self.total("cleaned"), Some(router.clean), Some(devices.cleaned)));
        rows
    }

    pub(super) fn shards(&self) -> Vec<(u64, u64)> {
        let figure = |shard: &Value, name: &str| shard[name].as_u64().unwrap_or_default();
        let shards = self.shards.as_array().into_iter().flatten();
        shards.map(|s| (figure(s, "sessions"), figure(s, "deliveries"))).collect()
    }

    /// For a script.
    pub(super) fn json(&self) -> Value {
        let by_reason = |name: &str| -> Map<_, _> {
            self.by_reason(name).into_iter().map(|(reason, n)| (reason, json!(n))).collect()
        };
        let shards: Vec<_> = self
            .shards()
            .into_iter()
            .map(|(sessions, deliveries)| json!({"sessions": sessions, "deliveries": deliveries}))
            .collect();
        let stages: Vec<_> = self.stages.iter().map(|t| json!({"stage": t.stage, "ms": t.ms})).collect();
        json!({
            "accepted": self.total("accepted"),
            "arrived": self.total("arrived"),
            "refused": by_reason("refused"),
            "failed": by_reason("failed"),
            "pending": self.total("pending"),
            "lost": self.lost,
            "duplicates": self.duplicates,
            "out_of_order": self.out_of_order,
            "revokes_told": self.told.0,
            "registered": self.registered,
            "transports": self.transports,
            "presence": self.presence,
            "bound": self.bound,
            "switched_off": self.switched_off,
            "suspended": self.router.batches_rejected,
            "answers_compared": self.compared.answers,
            "redelivered": self.devices.redelivered,
            "receipts": {
                "sent": self.total("sent"),
                "arrive": self.total("arrived"),
                "click": self.total("clicked"),
                "clean": self.total("cleaned"),
            },
            "shards": shards,
            "stages": stages,
            "seconds": (self.seconds * 100.0).round() / 100.0,
        })
    }

    /// What is wrong; nothing, if all is well.
    pub(super) fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        if self.lost > 0 {
            faults.push(format!("{} messages were lost", self.lost));
        }
        if self.duplicates > 0 {
            faults.push(format!("{} messages were handed to an app twice", self.duplicates));
        }
        if self.out_of_order > 0 {
            faults.push(format!("{} messages were handed to an app out of order", self.out_of_order));
        }
        let rows = self.rows();
        for row in &rows {
            if !row.agrees() {
                faults.push(format!("{} differs", row.name));
            }
        }
        // A reason that the edge doesn't name at all has no line.
        let missing = |name: &&String| self.expected[*name] > 0 && rows.iter().all(|row| row.name != **name);
        faults.extend(self.expected.keys().filter(missing).map(|name| format!("{name} is missing")));
        if self.told.0 != self.told.1 {
            faults.push(format!(
                "{} devices were told of a message taken back, not {}",
                self.told.0, self.told.1
            ));
        }
        if self.bound != self.devices.bound {
            faults.push(format!(
                "devices were bound {} times, routers were told of {}",
                self.devices.bound, self.bound
            ));
        }
        if self.transports != self.sessions {
            let (ours, edge) = (&self.transports, &self.sessions);
            faults.push(format!("sessions by transport differ: devices have {ours:?}, the edge {edge:?}"));
        }
        if self.presence != self.transports.values().sum::<u64>() {
            faults.push(format!("presence has {} devices", self.presence));
        }
        faults.extend(self.compared.differences.first().cloned());
        let wrong = [
            ("targets have two different outcomes", self.router.conflicts),
            ("outcomes are of unknown batches", self.router.foreign),
            (
                "batches too many, or too few, were rejected",
                self.router.batches_rejected.abs_diff(self.rejected),
            ),
            ("events were dropped by the edge", self.router.gaps),
            ("events match nothing", self.router.unmatched),
        ];
        faults.extend(wrong.iter().filter(|(_, n)| *n > 0).map(|(what, n)| format!("{n} {what}")));
        for check in self.checks.iter().filter(|c| !c.holds) {
            faults.push(format!("the identity did not hold ({}): {}", check.at, check.totals));
        }
        let shards = self.shards();
        if shards.len() != self.expected_shards as usize || shards.iter().any(|(sessions, _)| *sessions == 0)
        {
            faults.push("a shard had no session".into());
        }
        if !self.graceful {
            faults.push("the edge did not leave gracefully".into());
        }
        faults
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn report() -> Report {
        let totals = json!({
            "identity": true, "targets": 12, "refused": {"duplicate": 2, "offline": 0}, "accepted": 10,
            "arrived": 9, "failed": {"expired": 1, "offline": 0}, "pending": 0, "sent": 9, "clicked": 2, "cleaned": 1,
        });
        let router = router::Tally {
            targets: 13,
            targets_rejected: 1,
            batches_rejected: 1,
            accepted: 10,
            refused: [0, 0, 0, 0, 2],
            arrived: 9,
            failed: [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            sent: 9,
            arrive: 9,
            click: 2,
            clean: 1,
            ..router::Tally::default()
        };
        let devices =
            device::Tally { received: 9, arrived: 9, clicked: 2, cleaned: 1, ..device::Tally::default() };
        Report {
            lost: 0,
            duplicates: 0,
            out_of_order: 0,
            expected: [("failed: expired".to_owned(), 1)].into(),
            registered: 1,
            transports: [("quic", 1), ("tls", 3)].into(),
            sessions: [("quic", 1), ("tls", 3)].into(),
            bound: 0,
            switched_off: 0,
            rejected: 1,
            told: (2, 2),
            presence: 4,
            compared: Compared { answers: 7, differences: Vec::new() },
            devices,
            router,
            checks: vec![Check { at: "the end".into(), holds: true, totals }],
            shards: json!([{"sessions": 3, "deliveries": 5}, {"sessions": 1, "deliveries": 4}]),
            expected_shards: 2,
            graceful: true,
            stages: vec![Timed { stage: "connect", ms: 12 }, Timed { stage: "push", ms: 1_222 }],
            seconds: 1.234,
        }
    }

    #[test]
    fn accounts_that_agree_have_no_fault_and_the_json_has_its_names() {
        let report = report();
        assert_eq!(report.faults(), Vec::<String>::new());
        let expected = json!({
            "accepted": 10, "arrived": 9, "refused": {"duplicate": 2}, "failed": {"expired": 1}, "pending": 0, "lost": 0,
            "duplicates": 0, "out_of_order": 0, "revokes_told": 2, "registered": 1, "transports": {"quic": 1, "tls": 3},
            "presence": 4, "bound": 0, "switched_off": 0, "suspended": 1, "answers_compared": 7,
            "redelivered": 0, "receipts": {"sent": 9, "arrive": 9, "click": 2, "clean": 1},
            "shards": [{"sessions": 3, "deliveries": 5}, {"sessions": 1, "deliveries": 4}],
            "stages": [{"stage": "connect", "ms": 12}, {"stage": "push", "ms": 1222}], "seconds": 1.23,
        });
        assert_eq!(report.json(), expected);
    }

    #[test]
    fn each_difference_is_a_fault() {
        let faults = |change: fn(&mut Report)| {
            let mut report = report();
            change(&mut report);
            report.faults()
        };
        assert_eq!(faults(|r| r.lost = 1).len(), 1);
        assert_eq!(faults(|r| r.duplicates = 1).len(), 1);
        assert_eq!(faults(|r| r.router.click = 1), ["receipts: click differs"]);
        assert_eq!(faults(|r| r.devices.cleaned = 9), ["receipts: clean differs"]);
        assert_eq!(faults(|r| r.router.failed[0] = 0), ["failed: expired differs", "pending differs"]);
        assert_eq!(faults(|r| r.checks[0].holds = false).len(), 1);
        assert_eq!(faults(|r| r.out_of_order = 1).len(), 1);
        assert_eq!(faults(|r| r.told.0 = 1).len(), 1);
        assert_eq!(faults(|r| r.bound = 1).len(), 1);
        assert_eq!(faults(|r| r.presence = 3), ["presence has 3 devices"]);
        assert_eq!(faults(|r| r.compared.differences.push("a".into())), ["a"]);
        assert_eq!(faults(|r| *r.sessions.entry("tls").or_default() += 1).len(), 1);
        assert_eq!(
            faults(|r| r.expected.extend([("failed: expired".to_owned(), 3)])),
            ["failed: expired differs"]
        );
        assert_eq!(
            faults(|r| r.expected.extend([("failed: revoked".to_owned(), 3)])),
            ["failed: revoked is missing"]
        );
        assert_eq!(faults(|r| r.shards[1]["sessions"] = json!(0)), ["a shard had no session"]);
        assert_eq!(faults(|r| r.expected_shards = 3), ["a shard had no session"]);
    }
}
