//! The end of the demo for somebody who reads it: three accounts side by side, what they mean, and what to look at next.

use std::fmt::Write;

use super::report::Report;
use crate::cli::output::Paint;

/// Below the accounting.
const EXPLANATIONS: [&str; 3] = [
    "Counted apart by each; a dot: it doesn't count that. Planned: what the demo set up. targets = refused + accepted: the edge",
    "has it on disk. accepted = arrived (its device said so) + failed (for the reason named) + pending. A receipt tells a router",
    "that a message was sent to a device, arrived, was tapped (click) or dismissed (clean).",
];

/// What to look at next.
const NEXT: &str = "\
Next:
  mooring inspect reasons                      every word above that says why, and what to do about it
  mooring serve --dev --data-dir mooring-data  an edge to play with; it prints how to connect a device and push
  mooring demo --keep DIR                      the same again; the edge's data and log stay in DIR";

/// A line. Writing to a string can't fail.
fn put(out: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(out, "{line}").ok();
}

fn heading(out: &mut String, paint: Paint, text: &str, more: &str) {
    put(out, format_args!("\n{}", format!("{} {more}", paint.strong(text)).trim_end()));
}

impl Report {
    /// For a reader.
    pub(super) fn table(&self, paint: Paint) -> String {
        let mut out = String::new();
        self.accounting(&mut out, paint);
        self.hand_over(&mut out, paint);
        self.connections(&mut out, paint);
        self.verdict(&mut out, paint);
        out
    }

    fn accounting(&self, out: &mut String, paint: Paint) {
        heading(out, paint, "What became of every target of every push", "");
        let cell = |n: Option<u64>| n.map_or_else(|| "·".into(), |n| n.to_string());
        put(out, format_args!("{:<26}{:>9}{:>9}{:>9}{:>9}", "", "edge", "routers", "devices", "planned"));
        for row in self.rows() {
            let name = if row.is_part() { format!("  {}", row.name) } else { row.name.clone() };
            let verdict = if row.agrees() { paint.good("✓") } else { paint.bad("✗ differs") };
            let (edge, router, devices, plan) =
                (row.edge, cell(row.router), cell(row.devices), cell(row.plan));
            put(out, format_args!("{name:<26}{edge:>9}{router:>9}{devices:>9}{plan:>9}  {verdict}"));
        }
        for explanation in EXPLANATIONS {
            put(out, format_args!("{}", paint.faint(explanation)));
        }
    }

    fn hand_over(&self, out: &mut String, paint: Paint) {
        heading(out, paint, "What the apps on the devices saw", "");
        let devices = &self.devices;
        let never = |n: u64| if n == 0 { paint.good("✓ never") } else { paint.bad("✗") };
        for (what, n, note) in [
            ("handed over", devices.received, String::new()),
            ("lost", self.lost, never(self.lost)),
            ("handed over twice", self.duplicates, never(self.duplicates)),
            ("out of order", self.out_of_order, never(self.out_of_order)),
            ("told of a taking back", self.told.0, String::new()),
            ("sent again after a break", devices.redelivered, String::new()),
            ("of that, known and dropped", devices.duplicates_dropped, String::new()),
        ] {
            put(out, format_args!("{}", format!("{what:<26}{n:>9}  {note}").trim_end()));
        }
    }

    fn connections(&self, out: &mut String, paint: Paint) {
        heading(out, paint, "Who is connected in the end", "");
        for (name, n) in &self.transports {
            let edge = self.sessions.get(name).copied().unwrap_or_default();
            let verdict = if edge == *n { paint.good("✓") } else { paint.bad("✗ differs") };
            let name = format!("sessions over {name}");
            put(out, format_args!("{name:<26}{edge:>9}{:>9}{n:>9}{:>9}  {verdict}", "·", "·"));
        }
        for (i, (sessions, deliveries)) in self.shards().into_iter().enumerate() {
            let name = format!("shard {i}");
            put(out, format_args!("{name:<26}{sessions:>9}  and {deliveries} deliveries since the crash"));
        }
    }

    fn verdict(&self, out: &mut String, paint: Paint) {
        heading(out, paint, "Time", &format!("{:.1} s", self.seconds));
        let times: Vec<String> =
            self.stages.iter().map(|t| format!("{} {:.2}", t.stage, t.ms as f64 / 1_000.0)).collect();
        put(out, format_args!("{}\n", times.join(" · ")));
        let held = self.checks.iter().filter(|c| c.holds).count();
        let faults = self.faults();
        if faults.is_empty() {
            put(out, format_args!("{}", paint.good("✓ Nothing lost, nothing twice, all counts agree.")));
        } else {
            put(out, format_args!("{}", paint.bad("✗ Something is amiss.")));
        }
        for fault in &faults {
            put(out, format_args!("  {}", paint.bad(fault)));
        }
        let (checks, answers) = (self.checks.len(), self.compared.answers);
        put(
            out,
            format_args!(
                "  accepted = arrived + failed + pending held at {held} of {checks} checks, before and after the crash.\n  \
                 {answers} answers of the edge about devices and messages were compared; presence has {} devices.",
                self.presence
            ),
        );
        put(out, format_args!("\n{NEXT}"));
        out.truncate(out.trim_end().len());
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::report;
    use super::*;

    #[test]
    fn a_newcomer_sees_what_agrees_and_what_does_not() {
        let mut report = report();
        let table = report.table(Paint::none());
        assert!(table.contains("Nothing lost, nothing twice, all counts agree"), "{table}");
        assert!(!table.contains('✗') && !table.contains('\u{1b}'), "{table}");
        let line = table.lines().find(|line| line.contains("failed: expired")).expect("a line");
        assert_eq!(
            line.split_whitespace().collect::<Vec<_>>(),
            ["failed:", "expired", "1", "1", "·", "1", "✓"]
        );
        assert!(table.lines().all(|line| line.chars().count() <= 125), "{table}");

        report.router.click = 1;
        let table = report.table(Paint::none());
        assert!(
            table.contains("✗ Something is amiss") && table.contains("receipts: click differs"),
            "{table}"
        );
    }
}
