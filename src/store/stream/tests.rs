//! What streams hold back, by themselves.

use super::*;

fn saved(id: StreamId, name: &str, cursor: u64, last_event: u64) -> SavedStream {
    let (cursor, last_event) = (Seq(cursor), Seq(last_event));
    SavedStream { id, name: name.into(), cursor, last_event, gaps: Gaps::default() }
}

fn streams(all: Vec<SavedStream>) -> Streams {
    let next_id = all.len() as StreamId + 1;
    Streams::new(SavedStreams { next_id, streams: all, ..SavedStreams::default() }, &["main".into()])
}

fn segment(first: u64, last: u64, used: u32) -> SegmentState {
    SegmentState { id: first as u32, first: Seq(first), last: Seq(last), used, size: 1_000, active: false }
}

/// Ten sequences each, and one without a record yet.
fn segments() -> [SegmentState; 4] {
    [segment(1, 10, 100), segment(11, 20, 200), segment(21, 30, 400), segment(31, 30, 40)]
}

fn gap(first: u64, last: u64) -> ReceiptGap {
    ReceiptGap::unreadable(Seq(first), Seq(last))
}

#[test]
fn a_stream_holds_back_the_segments_behind_its_cursor_while_there_is_something_to_read() {
    let streams = streams(vec![saved(1, "main", 10, 25), saved(2, "idle", 10, 10), saved(3, "late", 29, 30)]);
    let held = |soft| {
        streams.measure(&segments(), soft, 7);
        [0, 1, 2].map(|stream| (streams.pinned(stream), streams.all[stream].full.load(Ordering::Relaxed)))
    };
    assert_eq!(held(599), [(600, true), (0, false), (400, false)]);
    assert_eq!(held(600), [(600, false), (0, false), (400, false)], "the bound itself is room");
    assert_eq!([0, 1, 2].map(|stream| streams.pins(stream)), [true, false, true]);
    assert_eq!(streams.oldest_cursor(), Seq(10), "of those with something to read");
    // The oldest of it has gone, with a gap in its place: that needs no journal. It is still something to read.
    streams.insert_gap(0, gap(11, 20));
    assert_eq!(held(600)[0], (400, false));
    assert_eq!(streams.oldest_cursor(), Seq(20));
    streams.insert_gap(0, gap(21, 25));
    assert_eq!(held(600)[0], (0, false));
    assert!(streams.has_unread(0) && !streams.pins(0) && !streams.has_unread(1));
    streams.retire(2);
    assert_eq!(held(600)[2], (0, false));
    assert_eq!((streams.oldest_cursor(), streams.position("late")), (Seq(u64::MAX), None));
    // What is lost may have been anybody's.
    streams.note_lost(Seq(40));
    assert_eq!([0, 1].map(|stream| streams.has_unread(stream)), [true, true]);
}

#[test]
fn since_when_something_is_unread_is_told_until_a_cursor_moves() {
    let streams = streams(vec![saved(1, "main", 10, 25), saved(2, "idle", 10, 10)]);
    let since = |now| {
        streams.measure(&segments(), 1_000, now);
        [0, 1].map(|stream: usize| streams.all[stream].unread_since.load(Ordering::Relaxed))
    };
    assert_eq!(since(7), [7, 0]);
    assert_eq!(since(9), [7, 0]);
    // The same cursor again, and an older one, are no progress.
    streams.set_cursor(0, Seq(10));
    streams.set_cursor(0, Seq(3));
    assert_eq!((since(11), streams.cursor(0)), ([7, 0], Seq(10)));
    streams.set_cursor(0, Seq(20));
    assert_eq!(since(13), [13, 0]);
    streams.set_cursor(0, Seq(25));
    assert_eq!(since(15), [0, 0]);
    streams.all[1].last_event.store(26, Ordering::Relaxed);
    assert_eq!(since(17), [0, 17]);
}

#[test]
fn a_gap_grows_only_while_no_reader_was_given_it() {
    let streams = streams(vec![saved(1, "main", 10, 25)]);
    assert_eq!(streams.growing_gap(0), None);
    streams.insert_gap(0, gap(11, 20));
    assert_eq!(streams.growing_gap(0), Some(gap(11, 20)));
    streams.all[0].read_to.store(19, Ordering::Release);
    assert!(streams.growing_gap(0).is_some());
    streams.all[0].read_to.store(20, Ordering::Release);
    assert_eq!(streams.growing_gap(0), None, "its reader has it");
    streams.insert_gap(0, gap(21, 25));
    assert!(streams.growing_gap(0).is_some());
    streams.set_cursor(0, Seq(25));
    assert_eq!(streams.growing_gap(0), None);
}

#[test]
fn what_a_checkpoint_saves_is_what_a_start_finds() {
    let first = streams(vec![saved(1, "main", 10, 25), saved(2, "idle", 10, 10), saved(3, "gone", 1, 30)]);
    first.insert_gap(0, gap(11, 20));
    first.retire(2);
    let kept = first.saved(Seq(50));
    let cursors: Vec<_> = kept.streams.iter().map(|stream| (&*stream.name, stream.cursor)).collect();
    assert_eq!(
        cursors,
        [("main", Seq(10)), ("idle", Seq(50))],
        "where nothing is unread, the head is as good"
    );
    let again = Streams::new(kept, &["main".into()]);
    assert_eq!((again.len(), again.pin(0), again.growing_gap(0)), (2, Seq(20), Some(gap(11, 20))));
    assert_eq!([0, 1].map(|stream| (again.is_configured(stream), again.id(stream))), [(true, 1), (false, 2)]);
    assert!(!again.has_unread(1) && again.pins(0));
}
