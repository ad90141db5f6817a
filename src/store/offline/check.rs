//! Is it whole? Every record, every checkpoint, every row; and whether they agree with each other.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use super::AtRest;
use super::describe::{describe, kind_name};
use crate::binding::ChangeError;
use crate::ids::{DeviceKey, Seq, SessionRef, ShardId};
use crate::push::{Counts, Failure, Millis};
use crate::store::batch::Batch;
use crate::store::checkpoint::{self, CheckpointError};
use crate::store::engine::Engine;
use crate::store::engine::verify::Verified;
use crate::store::journal::{Damage, Recovery, SegmentState};
use crate::store::tables;
use crate::store::{CommitSink, Confirm};

/// How bad something is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Weight {
    /// Nothing is lost by it.
    Harmless,
    /// Something is lost, and the next start goes on without it.
    Damage,
    /// The next start fails.
    Fatal,
}

/// Something that isn't as it was written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// How bad it is.
    pub weight: Weight,
    /// The file.
    pub file: String,
    /// Where in it, in bytes.
    pub offset: Option<u64>,
    /// What is wrong.
    pub what: String,
    /// What follows from it.
    pub means: String,
}

/// What is in a data directory.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Its format.
    pub format: u32,
    /// The journal's segments.
    pub segments: Vec<SegmentState>,
    /// First and last sequence that is kept, and edge time of the first and the last commit.
    pub sequences: Option<(Seq, Seq)>,
    /// See `sequences`.
    pub times: Option<(Millis, Millis)>,
    /// Records and bytes of payload, by the word for the kind.
    pub records: BTreeMap<&'static str, (u64, u64)>,
    /// Bytes of all files of the journal, of the checkpoints, of the tables.
    pub journal_bytes: u64,
    /// See `journal_bytes`.
    pub checkpoint_bytes: u64,
    /// See `journal_bytes`.
    pub tables_bytes: u64,
    /// Checkpoints, the newest first: their names and what they cover.
    pub checkpoints: Vec<(String, Option<Seq>)>,
    /// What the next start would have; `None`: it would fail.
    pub state: Option<State>,
    /// What isn't as it should be, the worst first; of each weight the first [`NAMED`].
    pub findings: Vec<Finding>,
    /// All that was found, by weight.
    pub found: BTreeMap<Weight, u64>,
    /// Damage that was found: the start finds again what the journal's reading found.
    places: BTreeSet<(u32, u32)>,
}

/// Findings of one weight that are named one by one; the others are only counted.
pub const NAMED: usize = 1_000;

/// What the next start would have.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// Since the data directory was made.
    pub totals: Counts,
    /// What the rows and lists say.
    pub verified: Verified,
    /// Bytes of journal records that live entries need.
    pub live_bytes: u64,
    /// Known devices, revoked credentials, push records.
    pub devices: u64,
    /// See `devices`.
    pub revoked: u64,
    /// See `devices`.
    pub messages: u64,
    /// The streams: name, cursor.
    pub streams: Vec<(String, Seq)>,
}

/// What is being done, for who waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Reading so many bytes of journal.
    Journal(u64),
    /// Reading checkpoints.
    Checkpoints,
    /// Opening the engine.
    Start,
    /// Comparing lists and rows.
    Compare,
}

impl Report {
    /// The worst of what was found.
    pub fn worst(&self) -> Option<Weight> {
        self.found.keys().next_back().copied()
    }

    /// Whether nothing is lost.
    pub fn is_whole(&self) -> bool {
        self.worst().is_none_or(|worst| worst == Weight::Harmless)
    }

    fn find(
        &mut self,
        weight: Weight,
        file: impl Into<String>,
        offset: Option<u64>,
        what: String,
        means: &str,
    ) {
        let found = self.found.entry(weight).or_default();
        *found += 1;
        if *found > NAMED as u64 {
            return;
        }
        let means = means.to_owned();
        self.findings.push(Finding { weight, file: file.into(), offset, what, means });
    }

    fn damaged(&mut self, corrupt: &[Damage]) {
        for damage in corrupt {
            let what = match damage.lost {
                Some((first, last)) if first == last => {
                    format!("{} is damaged: record {first} is lost", damage.what)
                }
                Some((first, last)) => {
                    format!("{} is damaged: records {first} to {last} are lost", damage.what)
                }
                None => format!("{} is damaged", damage.what),
            };
            let weight = if damage.lost.is_some() { Weight::Damage } else { Weight::Harmless };
            let means = if damage.lost.is_some() { LOST_RECORD } else { "the records behind it are whole" };
            let place = damage.place;
            if self.places.insert((place.segment, place.offset)) {
                self.find(weight, segment(place.segment), Some(u64::from(place.offset)), what, means);
            }
        }
    }

    fn recovered(&mut self, recovery: &Recovery) {
        self.damaged(&recovery.corrupt);
        if recovery.torn_bytes > 0 {
            let what = format!("{} bytes behind the last commit were never synced", recovery.torn_bytes);
            let means = "as a crash leaves them; nothing in them was acknowledged";
            let file = self.segments.last().map_or_else(|| "journal".to_owned(), |last| segment(last.id));
            self.find(Weight::Harmless, file, None, what, means);
        }
    }

    fn compared(&mut self, engine: &Engine<super::OverlayDisk>, verified: Verified, devices: u64) {
        let totals = engine.totals();
        self.counted(&totals, &verified);
        self.read_to(&engine.stream_cursors(), engine.head());
        let (revoked, messages) = (engine.revoked(), engine.messages());
        let (live_bytes, streams) = (engine.live_bytes(), engine.stream_cursors());
        self.state = Some(State { totals, verified, live_bytes, devices, revoked, messages, streams });
    }

    fn counted(&mut self, totals: &Counts, verified: &Verified) {
        if !totals.identity_holds() {
            let what = "in sum, accepted isn't arrived + failed + pending".to_owned();
            self.find(
                Weight::Damage,
                tables::FILE,
                None,
                what,
                "the counts are wrong; messages aren't touched by it",
            );
        }
        if totals.pending != verified.pending {
            let what = format!(
                "{} messages are counted as pending, and lists have {}",
                totals.pending, verified.pending
            );
            self.find(Weight::Damage, tables::FILE, None, what, CORRECTED);
        }
        for (app, message, counted, there) in &verified.unequal {
            let what =
                format!("message {message} of {app}: {counted} counted as pending, lists have {there}");
            self.find(Weight::Damage, tables::FILE, None, what, CORRECTED);
        }
        if verified.wrong_records > 0 {
            let what = format!("{} push records don't add up", verified.wrong_records);
            self.find(Weight::Damage, tables::FILE, None, what, "the counts of these messages are wrong");
        }
        if verified.malformed_rows > 0 {
            let what = format!("{} rows make no sense", verified.malformed_rows);
            self.find(
                Weight::Damage,
                tables::FILE,
                None,
                what,
                "attributes and bindings of these devices are unknown until they say Hello again",
            );
        }
    }

    /// How far each stream is acknowledged.
    fn read_to(&mut self, cursors: &[(String, Seq)], head: Seq) {
        for (name, cursor) in cursors.iter().filter(|(_, cursor)| *cursor > head) {
            let what = format!("the cursor of stream {name} is {cursor}, and the newest record {head}");
            self.find(Weight::Damage, "checkpoints", None, what, "its reader misses what comes up to there");
        }
    }
}

/// A record that passed its checksum and makes no sense.
const NO_SENSE: &str =
    "it was written like this, by another version or by a mistake: the next start leaves it out";
const LOST_RECORD: &str =
    "what it says is lost; if it was a batch, what is pending of it ends as `storage` after the next start";
const FAILS: &str = "the next start says so and changes nothing";
const CORRECTED: &str =
    "the next start corrects it: what is missing ends as `storage`, and the router is told";

impl AtRest {
    /// Reads everything. Fails only if the directory can't be read.
    pub fn check(&self, step: &mut dyn FnMut(Step)) -> io::Result<Report> {
        let mut report = Report { format: self.format.version, ..Report::default() };
        let ending = |ending: &'static str| self.file_bytes(move |name| name.ends_with(ending));
        (report.journal_bytes, report.checkpoint_bytes) = (ending(".seg")?, ending(".ckpt")?);
        report.tables_bytes = self.file_bytes(|name| name == tables::FILE)?;
        step(Step::Journal(report.journal_bytes));
        self.check_journal(&mut report);
        step(Step::Checkpoints);
        self.check_checkpoints(&mut report);
        step(Step::Start);
        self.check_start(&mut report, step);
        report.findings.sort_by(|a, b| b.weight.cmp(&a.weight).then_with(|| a.file.cmp(&b.file)));
        Ok(report)
    }

    fn check_journal(&self, report: &mut Report) {
        let mut records = BTreeMap::<&'static str, (u64, u64)>::new();
        let (mut first, mut first_at) = (None, None);
        let read = self.records(&mut |record| {
            let name = kind_name(record.kind).unwrap_or("unknown");
            let (count, bytes) = records.entry(name).or_default();
            (*count, *bytes) = (*count + 1, *bytes + record.payload.len() as u64);
            first.get_or_insert(record.seq);
            // What the first start of all writes has none.
            if record.group_time > 0 {
                first_at.get_or_insert(record.group_time);
            }
            if describe(record.kind, record.payload, false).is_err() {
                let (what, place) = (format!("record {} ({name}) makes no sense", record.seq), record.place);
                report.find(
                    Weight::Damage,
                    segment(place.segment),
                    Some(u64::from(place.offset)),
                    what,
                    NO_SENSE,
                );
            }
        });
        report.records = records;
        match read {
            Ok((journal, recovery)) => {
                report.segments = journal.segments();
                report.sequences = first.map(|seq| (seq, recovery.head));
                report.times = first_at.map(|at| (at, recovery.last_time));
                report.damaged(&recovery.corrupt);
            }
            // A new directory has none; that there should be some is what the start says.
            Err(crate::store::journal::JournalError::NoSegments(_)) => {}
            Err(error) => report.find(Weight::Fatal, "journal", None, error.to_string(), FAILS),
        }
    }

    fn check_checkpoints(&self, report: &mut Report) {
        match checkpoint::examine(&*self.disk) {
            Ok(all) => report.checkpoints = all,
            Err(error) => report.find(Weight::Fatal, "checkpoints", None, error.to_string(), FAILS),
        }
        let damaged: Vec<_> =
            report.checkpoints.iter().filter(|(_, covers)| covers.is_none()).cloned().collect();
        let any_whole = damaged.len() < report.checkpoints.len();
        for (name, _) in damaged {
            let means = if any_whole {
                "the other one is used, and the journal has the rest: nothing is lost by it"
            } else {
                "no checkpoint is whole: if the journal was trimmed, the next start fails"
            };
            report.find(
                Weight::Harmless,
                name.clone(),
                None,
                CheckpointError::Damaged { name }.to_string(),
                means,
            );
        }
    }

    fn check_start(&self, report: &mut Report, step: &mut dyn FnMut(Step)) {
        let nobody = Box::new(|_: &DeviceKey| false);
        match Engine::open(self.disk.clone(), &self.options(), Box::new(Nobody), nobody) {
            Ok((mut engine, opened)) => {
                report.recovered(&opened.journal);
                if opened.left_out > 0 {
                    let what = format!("{} records or entries can't be applied", opened.left_out);
                    report.find(
                        Weight::Damage,
                        "journal",
                        None,
                        what,
                        "they are left out; what rests on them ends as `storage`",
                    );
                }
                step(Step::Compare);
                match engine.verify() {
                    Ok(verified) => report.compared(&engine, verified, opened.devices),
                    Err(error) => report.find(Weight::Fatal, tables::FILE, None, error.to_string(), FAILS),
                }
            }
            Err(error) => report.find(Weight::Fatal, "start", None, error.to_string(), FAILS),
        }
    }
}

fn segment(id: u32) -> String {
    crate::store::journal::segment_name(id)
}

/// Nobody is connected, and nothing is committed.
struct Nobody;

impl CommitSink for Nobody {
    fn batch(&mut self, _: &Arc<Batch>, _: &[DeviceKey]) {}
    fn confirmed(&mut self, _: ShardId, _: Vec<Confirm>) {}
    fn seen(&mut self, _: SessionRef) {}
    fn changed(&mut self, _: SessionRef, _: Result<(), ChangeError>) {}
    fn ended(&mut self, _: &DeviceKey, _: Seq, _: Failure) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::MessageId;
    use crate::store::journal::Place;

    #[test]
    fn many_findings_are_counted_and_the_worst_is_named_whenever_it_comes() {
        let mut report = Report::default();
        assert!(report.is_whole());
        for offset in 0..NAMED as u64 + 500 {
            report.find(Weight::Harmless, "journal", Some(offset), "odd".into(), NO_SENSE);
        }
        assert!(report.is_whole() && report.findings.len() == NAMED);
        report.find(Weight::Fatal, "start", None, "broken".into(), FAILS);
        assert_eq!((report.worst(), report.findings.len()), (Some(Weight::Fatal), NAMED + 1));
        assert_eq!(report.found[&Weight::Harmless], NAMED as u64 + 500);
    }
    /// What was found of counts and rows.
    fn found(totals: &Counts, verified: &Verified) -> Vec<String> {
        let mut report = Report::default();
        report.counted(totals, verified);
        assert!(report.findings.iter().all(|finding| finding.weight == Weight::Damage));
        report.findings.into_iter().map(|finding| finding.what).collect()
    }

    #[test]
    fn each_count_and_row_that_is_wrong_is_named_and_no_other() {
        let (totals, whole) = (Counts::default(), Verified::default());
        assert_eq!(found(&totals, &whole), [""; 0]);
        let uneven = Counts { accepted: 2, pending: 1, ..Counts::default() };
        let one = Verified { pending: 1, ..Verified::default() };
        assert_eq!(found(&uneven, &one), ["in sum, accepted isn't arrived + failed + pending"]);
        assert_eq!(found(&totals, &one), ["0 messages are counted as pending, and lists have 1"]);
        let records = Verified { wrong_records: 1, ..Verified::default() };
        assert_eq!(found(&totals, &records), ["1 push records don't add up"]);
        let rows = Verified { malformed_rows: 1, ..Verified::default() };
        assert_eq!(found(&totals, &rows), ["1 rows make no sense"]);
        let unequal = vec![("app".to_owned(), MessageId(7), 3, 2)];
        let message = Verified { unequal, ..Verified::default() };
        assert_eq!(found(&totals, &message), ["message 7 of app: 3 counted as pending, lists have 2"]);
    }

    #[test]
    fn a_stream_that_is_read_beyond_the_newest_record_is_named() {
        let mut report = Report::default();
        report.read_to(
            &[("main".into(), Seq(9)), ("other".into(), Seq(10)), ("ahead".into(), Seq(11))],
            Seq(10),
        );
        let [ahead] = &report.findings[..] else { panic!("{:?}", report.findings) };
        assert_eq!(ahead.what, "the cursor of stream ahead is 11, and the newest record 10");
    }

    #[test]
    fn damage_is_named_once_with_the_records_that_are_lost() {
        let damage = |offset, lost| Damage { what: "it", place: Place { segment: 1, offset }, lost };
        let mut report = Report::default();
        for _ in 0..2 {
            report.damaged(&[
                damage(8, None),
                damage(16, Some((Seq(3), Seq(3)))),
                damage(24, Some((Seq(4), Seq(6)))),
            ]);
        }
        let found = |finding: &Finding| (finding.weight, finding.offset, finding.what.clone());
        let expected = [
            (Weight::Harmless, Some(8), "it is damaged".to_owned()),
            (Weight::Damage, Some(16), "it is damaged: record 3 is lost".to_owned()),
            (Weight::Damage, Some(24), "it is damaged: records 4 to 6 are lost".to_owned()),
        ];
        assert_eq!(report.findings.iter().map(found).collect::<Vec<_>>(), expected);
    }
}
