//! What is durable about streams: which there are, where each one's reader is, which apps map to it since when, and its gaps. It stands in
//! the checkpoint's head, and the records of [`SavedStreams::apply`] change it.
//!
//! **Routes.** A record belongs to the stream that its app had at the record's sequence. So a change of the mapping is a record itself, and
//! each app has a list of (from this sequence on, this stream); the name `""` stands for apps that have no list, or none that old. Rejected:
//! the stream's number in each event (two bytes, but every kind of record would have to know of streams), and the present
//! mapping for all records (a change strands what is unread: the new stream's cursor is past it already).
//!
//! A stream that the configuration no longer names stays, and holds back what its reader has not seen, until it is retired. So does the route of an app
//! that is not configured any more: its messages still end, and that is for no other app's router. Once its stream is retired it is for nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::gaps::Gaps;
use super::histories::Histories;
use crate::ids::{HistoryId, Seq};
use crate::push::ReceiptGap;
use crate::store::codec::{Malformed, Take, put_bytes, put_u32, put_u64, put_varint};
use crate::store::options::StoreOptions;
use crate::store::record::{self, take_cursor};

/// A stream's number; never used twice.
pub(in crate::store) type StreamId = u32;

/// One stream.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::store) struct SavedStream {
    pub(in crate::store) id: StreamId,
    pub(in crate::store) name: Arc<str>,
    pub(in crate::store) cursor: Seq,
    pub(in crate::store) last_event: Seq,
    pub(in crate::store) gaps: Gaps,
}

impl SavedStream {
    /// Records are lost: among them perhaps one of a cursor, or of a gap. So what has gone before `kept` and lies behind the cursor, in no gap, may
    /// have been events.
    fn cover(&mut self, kept: Seq) {
        let mut at = self.cursor;
        while at < kept.min(self.last_event) {
            let gap = self.gaps.behind(at).map(|gap| (gap.first, gap.last));
            at = match gap {
                Some((first, last)) if first.0 <= at.0 + 1 => last,
                _ => {
                    let last = gap.map_or(kept, |(first, _)| kept.min(Seq(first.0 - 1)));
                    self.gaps.insert(ReceiptGap::unreadable(Seq(at.0 + 1), last));
                    last
                }
            };
        }
    }
}

/// Which stream an app's records belong to.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(in crate::store) struct Routes(BTreeMap<String, Vec<(Seq, StreamId)>>);

impl Routes {
    /// Of an app's record with this sequence.
    pub(in crate::store) fn of(&self, app: &str, seq: Seq) -> Option<StreamId> {
        let at = |app| {
            let list = self.0.get(app)?;
            list.iter().rev().find(|(from, _)| *from <= seq).map(|(_, stream)| *stream)
        };
        at(app).or_else(|| at(""))
    }

    /// The same, and up to which sequence that holds.
    pub(in crate::store) fn of_until(&self, app: &str, seq: Seq) -> (Option<StreamId>, Seq) {
        let next = |app| {
            let later = self.0.get(app).into_iter().flatten().map(|(from, _)| *from);
            later.filter(|from| *from > seq).min()
        };
        let changes = next(app).into_iter().chain(next("")).min();
        (self.of(app, seq), changes.map_or(Seq(u64::MAX), |from| Seq(from.0 - 1)))
    }

    fn newest(&self, app: &str) -> Option<StreamId> {
        self.0.get(app)?.last().map(|(_, stream)| *stream)
    }

    /// Where an app's records go from now on.
    pub(in crate::store) fn now(&self, app: &str) -> Option<StreamId> {
        self.newest(app).or_else(|| self.newest(""))
    }

    fn change(&mut self, app: &str, from: Seq, stream: StreamId) {
        self.0.entry(app.to_owned()).or_default().push((from, stream));
    }

    /// Forgets what concerns only records before `oldest`.
    fn forget(&mut self, oldest: Seq) {
        for list in self.0.values_mut() {
            let old = list.windows(2).take_while(|pair| pair[1].0 <= oldest).count();
            list.drain(..old);
        }
    }
}

/// All of it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(in crate::store) struct SavedStreams {
    pub(in crate::store) next_id: StreamId,
    pub(in crate::store) streams: Vec<SavedStream>,
    pub(in crate::store) routes: Routes,
    pub(in crate::store) histories: Histories,
}

/// What a start changes, to be written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::store) enum Change {
    /// Its history begins.
    History(HistoryId),
    /// A stream of this name.
    Stream(StreamId, Arc<str>),
    /// From here on the app maps to it.
    Route(String, StreamId),
}

impl Change {
    pub(in crate::store) fn encode(&self, out: &mut Vec<u8>) -> u8 {
        match self {
            Self::History(id) => {
                put_history(out, *id);
                record::HISTORY
            }
            Self::Stream(id, name) => {
                put_u32(out, *id);
                put_bytes(out, name.as_bytes());
                record::STREAM
            }
            Self::Route(app, id) => {
                put_u32(out, *id);
                put_bytes(out, app.as_bytes());
                record::ROUTE
            }
        }
    }
}

/// The payload of the record that begins a history.
pub(in crate::store) fn put_history(out: &mut Vec<u8>, id: HistoryId) {
    put_u64(out, id.get());
}

/// Takes what [`put_history`] put.
pub(in crate::store) fn take_history(take: &mut Take<'_>) -> Result<HistoryId, Malformed> {
    HistoryId::new(take.u64()?).ok_or(Malformed)
}

/// The payload of a gap record.
pub(in crate::store) fn put_gap(out: &mut Vec<u8>, stream: StreamId, gap: &ReceiptGap) {
    put_u32(out, stream);
    super::gaps::put(out, gap);
}

/// The payload of the record that retires a stream.
pub(in crate::store) fn put_retired(out: &mut Vec<u8>, stream: StreamId) {
    put_u32(out, stream);
}

impl SavedStreams {
    /// A record about streams. Those of the checkpoint itself are not applied again: they have lower sequences than it covers.
    pub(in crate::store) fn apply(&mut self, kind: u8, seq: Seq, payload: &[u8]) -> Result<(), Malformed> {
        let mut take = Take(payload);
        match kind {
            record::CURSOR => {
                let (name, cursor) = take_cursor(payload)?;
                if let Some(stream) = self.streams.iter_mut().find(|stream| &*stream.name == name) {
                    stream.cursor = stream.cursor.max(cursor);
                }
                return Ok(());
            }
            record::STREAM => {
                let (id, name) = (take.u32()?, take.text()?);
                self.add(id, name.into(), seq);
            }
            record::ROUTE => {
                let id = take.u32()?;
                self.routes.change(take.text()?, seq, id);
            }
            record::GAP => {
                let id = take.u32()?;
                let gap = super::gaps::take(&mut take)?;
                if let Some(stream) = self.streams.iter_mut().find(|stream| stream.id == id) {
                    stream.gaps.insert(gap);
                }
            }
            record::HISTORY => self.histories.begin(take_history(&mut take)?, seq),
            record::RETIRED => {
                let id = take.u32()?;
                self.streams.retain(|stream| stream.id != id);
            }
            _ => return Err(Malformed),
        }
        take.0.is_empty().then_some(()).ok_or(Malformed)
    }

    fn add(&mut self, id: StreamId, name: Arc<str>, seq: Seq) {
        self.next_id = self.next_id.max(id + 1);
        // Nothing before its record can be its own.
        let cursor = Seq(seq.0.saturating_sub(1));
        self.streams.retain(|stream| stream.id != id);
        self.streams.push(SavedStream { id, name, cursor, last_event: Seq(0), gaps: Gaps::default() });
    }

    /// Records up to here are lost, or this one says which are: there may have been an event of any stream among them.
    pub(in crate::store) fn note_lost(&mut self, seq: Seq) {
        for stream in &mut self.streams {
            stream.last_event = stream.last_event.max(seq);
        }
    }

    /// After a start that found records lost; the journal keeps what is behind `kept`.
    pub(in crate::store) fn cover_lost(&mut self, kept: Seq) {
        self.streams.iter_mut().for_each(|stream| stream.cover(kept));
    }

    /// Records are lost from here on, and among them may be those of streams and routes: what the configuration names and nothing tells of was
    /// there before, as it is configured now. A next start finds the same, until a checkpoint has it or the configuration is another one.
    pub(in crate::store) fn reclaim(&mut self, options: &StoreOptions, from: Seq, next: Seq) {
        for name in &options.streams {
            if self.streams.iter().all(|stream| stream.name != *name) {
                // Older ones may be of a stream that was retired.
                let routed =
                    self.routes.0.values().flatten().filter(|(at, _)| *at >= from).map(|(_, id)| *id);
                let nameless = routed.filter(|id| self.streams.iter().all(|stream| stream.id != *id)).min();
                self.add(nameless.unwrap_or(self.next_id), name.clone(), from);
            }
        }
        let apps = options.app_streams.keys().map(|app| app.as_str().to_owned());
        for app in apps.chain([String::new()]) {
            let name = &options.streams[options.stream_of(&app)];
            let Some(stream) = self.streams.iter().find(|stream| stream.name == *name) else { continue };
            // What its reader is past already stays another stream's, if it is one's: rather that than nobody's.
            let from = from.max(Seq(stream.cursor.0 + 1));
            let id = stream.id;
            let list = self.routes.0.entry(app).or_default();
            if list.first().is_none_or(|(first, _)| *first > from) {
                list.insert(0, (from, id));
            }
        }
        self.note_lost(Seq(next.0.saturating_sub(1)));
    }

    /// An event of an app.
    pub(in crate::store) fn note_event(&mut self, app: &str, seq: Seq) {
        let id = self.routes.of(app, seq);
        if let Some(stream) = self.streams.iter_mut().find(|stream| Some(stream.id) == id) {
            stream.last_event = stream.last_event.max(seq);
        }
    }

    /// Takes in the configuration: streams of it come first, in its order; and the history that begins, before the first event. Answers
    /// what has to be written, in order, from `next` on.
    pub(in crate::store) fn configure(
        &mut self,
        options: &StoreOptions,
        oldest: Seq,
        next: Seq,
        history: Option<HistoryId>,
    ) -> Vec<Change> {
        self.routes.forget(oldest);
        let mut changes = Vec::new();
        let seq = |changes: &Vec<Change>| Seq(next.0 + changes.len() as u64);
        for name in &options.streams {
            if self.streams.iter().all(|stream| stream.name != *name) {
                let id = self.next_id;
                self.add(id, name.clone(), seq(&changes));
                changes.push(Change::Stream(id, name.clone()));
            }
        }
        let place = |stream: &SavedStream| {
            options.streams.iter().position(|name| *name == stream.name).unwrap_or(usize::MAX)
        };
        self.streams.sort_by_key(|stream| (place(stream), stream.id));
        let apps = options.app_streams.keys().map(|app| app.as_str().to_owned());
        for app in apps.chain([String::new()]).collect::<BTreeSet<String>>() {
            let wanted = self.streams.get(options.stream_of(&app)).map(|stream| stream.id);
            if let Some(id) = wanted.filter(|id| self.routes.newest(&app) != Some(*id)) {
                self.routes.change(&app, seq(&changes), id);
                changes.push(Change::Route(app, id));
            }
        }
        if let Some(id) = history {
            self.histories.begin(id, seq(&changes));
            changes.push(Change::History(id));
        }
        changes
    }

    pub(in crate::store) fn encode(&self, out: &mut Vec<u8>) {
        put_u32(out, self.next_id);
        put_varint(out, self.streams.len() as u64);
        for stream in &self.streams {
            put_u32(out, stream.id);
            put_bytes(out, stream.name.as_bytes());
            put_u64(out, stream.cursor.0);
            put_u64(out, stream.last_event.0);
            stream.gaps.encode(out);
        }
        put_varint(out, self.routes.0.len() as u64);
        for (app, list) in &self.routes.0 {
            put_bytes(out, app.as_bytes());
            put_varint(out, list.len() as u64);
            for (from, stream) in list {
                put_u64(out, from.0);
                put_u32(out, *stream);
            }
        }
        self.histories.encode(out);
    }

    pub(in crate::store) fn decode(take: &mut Take<'_>) -> Result<Self, Malformed> {
        let mut saved = Self { next_id: take.u32()?, ..Self::default() };
        for _ in 0..take.varint()? {
            saved.streams.push(SavedStream {
                id: take.u32()?,
                name: take.text()?.into(),
                cursor: Seq(take.u64()?),
                last_event: Seq(take.u64()?),
                gaps: Gaps::decode(take)?,
            });
        }
        for _ in 0..take.varint()? {
            let app = take.text()?.to_owned();
            for _ in 0..take.varint()? {
                let from = Seq(take.u64()?);
                saved.routes.change(&app, from, take.u32()?);
            }
        }
        saved.histories = Histories::decode(take)?;
        Ok(saved)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::AppKey;

    fn options(streams: &[&str], apps: &[(&str, &str)]) -> StoreOptions {
        let apps = apps.iter().map(|(app, stream)| (AppKey::parse(app).expect("valid"), (*stream).into()));
        StoreOptions {
            streams: streams.iter().map(|name| (*name).into()).collect(),
            app_streams: apps.collect(),
            ..StoreOptions::default()
        }
    }

    #[test]
    fn a_record_belongs_to_the_stream_that_its_app_had_then() {
        let mut saved = SavedStreams::default();
        let changes = saved.configure(&options(&["main"], &[("a", "main")]), Seq(1), Seq(1), None);
        assert_eq!(
            changes,
            [Change::Stream(0, "main".into()), Change::Route(String::new(), 0), Change::Route("a".into(), 0)]
        );
        let moved = options(&["second", "main"], &[("a", "second"), ("b", "main")]);
        let changes = saved.configure(&moved, Seq(1), Seq(10), None);
        assert_eq!(
            changes,
            [
                Change::Stream(1, "second".into()),
                Change::Route(String::new(), 1),
                Change::Route("a".into(), 1),
                Change::Route("b".into(), 0)
            ]
        );
        // Configured streams stand in the configuration's order.
        let names: Vec<&str> = saved.streams.iter().map(|stream| &*stream.name).collect();
        assert_eq!((names, saved.streams[0].cursor), (vec!["second", "main"], Seq(9)));
        let of = |app, seq| saved.routes.of(app, Seq(seq));
        assert_eq!(
            (of("a", 11), of("a", 12), of("b", 5), of("b", 13), of("c", 5)),
            (Some(0), Some(1), Some(0), Some(0), Some(0))
        );
        assert_eq!((of("c", 11), of("a", 2), of("a", 1)), (Some(1), Some(0), None));
        for app in ["a", "b", "c"] {
            for seq in 0..20 {
                let (stream, until) = saved.routes.of_until(app, Seq(seq));
                assert!((seq..until.0.min(20)).all(|seq| of(app, seq) == stream), "{app} from {seq}");
            }
        }
        assert_eq!(saved.routes.of_until("c", Seq(5)), (Some(0), Seq(10)));
        assert!(saved.configure(&moved, Seq(1), Seq(20), None).is_empty(), "the same again changes nothing");

        let mut bytes = Vec::new();
        saved.encode(&mut bytes);
        assert_eq!(SavedStreams::decode(&mut Take(&bytes)).as_ref(), Ok(&saved));
        for cut in 0..bytes.len() {
            assert!(SavedStreams::decode(&mut Take(&bytes[..cut])).is_err(), "{cut}");
        }
        // What the records say is the same as what was configured.
        let mut replayed = SavedStreams::default();
        let first =
            SavedStreams::default().configure(&options(&["main"], &[("a", "main")]), Seq(1), Seq(1), None);
        for (seq, change) in (1..).zip(&first).chain((10..).zip(&changes)) {
            let mut payload = Vec::new();
            let kind = change.encode(&mut payload);
            replayed.apply(kind, Seq(seq), &payload).expect("understood");
        }
        replayed.streams.sort_by_key(|stream| std::cmp::Reverse(stream.id));
        assert_eq!(replayed, saved);
        // Lists don't grow for ever.
        saved.routes.forget(Seq(50));
        assert_eq!((saved.routes.of("a", Seq(10)), saved.routes.of("a", Seq(60))), (None, Some(1)));
    }

    #[test]
    fn an_app_that_is_not_configured_any_more_stays_with_the_stream_that_it_had() {
        let mut saved = SavedStreams::default();
        let both = options(&["main", "second"], &[("a", "main"), ("b", "second")]);
        saved.configure(&both, Seq(1), Seq(1), None);
        // Another one is the first by name now.
        let without = options(&["a-third", "main"], &[("a", "main"), ("c", "a-third")]);
        let changes = saved.configure(&without, Seq(1), Seq(20), None);
        assert!(
            !changes.iter().any(|change| matches!(change, Change::Route(app, _) if app == "b")),
            "{changes:?}"
        );
        let now = |saved: &SavedStreams| ["a", "b", "c", "never"].map(|app| saved.routes.now(app));
        assert_eq!(now(&saved), [Some(0), Some(1), Some(2), Some(2)]);
        // What is retired leaves the app without one, at the next starts too; the number is nobody else's.
        saved.streams.retain(|stream| stream.id != 1);
        for _ in 0..2 {
            assert!(saved.configure(&without, Seq(25), Seq(30), None).is_empty());
            assert_eq!(now(&saved), [Some(0), Some(1), Some(2), Some(2)]);
        }
        saved.configure(&both, Seq(25), Seq(40), None);
        assert_eq!(now(&saved), [Some(0), Some(3), Some(2), Some(0)], "it is back");
    }

    fn stream(id: StreamId, cursor: u64, last_event: u64, gaps: &[(u64, u64)]) -> SavedStream {
        let mut all = Gaps::default();
        for (first, last) in gaps {
            all.insert(ReceiptGap::unreadable(Seq(*first), Seq(*last)));
        }
        let name = format!("stream-{id}").into();
        SavedStream { id, name, cursor: Seq(cursor), last_event: Seq(last_event), gaps: all }
    }

    #[test]
    fn what_a_cursor_that_may_be_lost_has_behind_it_is_covered_by_gaps_up_to_what_is_kept() {
        let covered = |cursor, last_event, gaps: &[(u64, u64)]| {
            let mut saved = SavedStreams {
                streams: vec![stream(0, cursor, last_event, gaps)],
                ..SavedStreams::default()
            };
            saved.cover_lost(Seq(40));
            let gaps = saved.streams[0].gaps.unread(Seq(0));
            gaps.iter().map(|gap| (gap.first.0, gap.last.0)).collect::<Vec<_>>()
        };
        assert_eq!(covered(10, 50, &[]), [(11, 40)]);
        assert_eq!(covered(10, 35, &[]), [(11, 40)], "there may have been events up to there");
        assert_eq!(covered(10, 10, &[]), [], "it has everything");
        assert_eq!(covered(40, 50, &[]), [], "what is kept is read");
        assert_eq!(covered(39, 50, &[]), [(40, 40)]);
        // What lies in a gap stays in that one.
        assert_eq!(covered(10, 50, &[(21, 30)]), [(11, 20), (21, 30), (31, 40)]);
        assert_eq!(covered(10, 50, &[(11, 30)]), [(11, 30), (31, 40)]);
        assert_eq!(covered(15, 50, &[(11, 30), (31, 39)]), [(11, 30), (31, 39), (40, 40)]);
        assert_eq!(covered(10, 50, &[(12, 40)]), [(11, 11), (12, 40)]);
        assert_eq!(covered(10, 60, &[(45, 50)]), [(11, 40), (45, 50)]);
    }

    #[test]
    fn streams_and_routes_whose_records_are_lost_are_as_the_configuration_has_them() {
        let wanted = options(&["stream-0", "second"], &[("a", "second"), ("b", "stream-0")]);
        let mut saved = SavedStreams::default();
        saved.reclaim(&wanted, Seq(10), Seq(50));
        let all: Vec<_> =
            saved.streams.iter().map(|one| (&*one.name, one.id, one.cursor.0, one.last_event.0)).collect();
        assert_eq!(all, [("stream-0", 0, 9, 49), ("second", 1, 9, 49)], "an event may have been of any");
        let of = |saved: &SavedStreams, app, seq| saved.routes.of(app, Seq(seq));
        assert_eq!([9, 10].map(|seq| of(&saved, "a", seq)), [None, Some(1)]);
        assert_eq!(([of(&saved, "b", 10), of(&saved, "c", 10)], saved.next_id), ([Some(0), Some(0)], 2));

        // Some are there, and a route names one that isn't: it is the one that the configuration has beside them. An older one was retired.
        let mut saved =
            SavedStreams { next_id: 8, streams: vec![stream(0, 30, 31, &[])], ..SavedStreams::default() };
        saved.routes.change("old", Seq(5), 6);
        saved.routes.change("a", Seq(10), 7);
        saved.routes.change("b", Seq(31), 0);
        let before = saved.routes.clone();
        saved.reclaim(&wanted, Seq(10), Seq(50));
        let all: Vec<_> = saved.streams.iter().map(|one| (one.id, one.cursor.0)).collect();
        assert_eq!((all, saved.next_id), (vec![(0, 30), (7, 9)], 8));
        for app in ["a", "b", "old"] {
            assert_eq!(saved.routes.0.get(app), before.0.get(app), "{app}: nothing is missing");
        }
        // Nothing tells whose the others were. What the reader is past stays nobody's.
        assert_eq!([30, 31].map(|seq| of(&saved, "c", seq)), [None, Some(0)]);
        // One whose list begins too late has what lies before, too.
        let mut saved = SavedStreams { streams: vec![stream(0, 5, 31, &[])], ..SavedStreams::default() };
        saved.routes.change("b", Seq(32), 3);
        saved.reclaim(&wanted, Seq(10), Seq(50));
        assert_eq!([9, 10, 31, 32].map(|seq| of(&saved, "b", seq)), [None, Some(0), Some(0), Some(3)]);
    }
}
