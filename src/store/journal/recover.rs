//! What is in the files after a start: which records are there, which were never completed, which are damaged.
//!
//! Every segment but the last is durable as a whole, and in the last every group that a later group's header calls synced. What is bad
//! there, or at or below what the caller knows to have been durable, is corruption: reported and skipped. Behind that only the
//! very last group can be incomplete: it is dropped as a whole. Nothing is written before all of this is known.
//!
//! A journal that ends before what was durable is one of two things. If bytes stand behind its end in which the missing records have room, the
//! end is damaged: it goes on behind them, and no sequence is given twice. If there are only zeros, or too few bytes, the files are older than
//! what knows of the records (a restored copy, a lost file): that is an error, and nothing is touched.

use std::sync::Arc;

use crate::fault::{self, Fault};
use crate::ids::Seq;

use super::format::{FoundHeader, RECORD_HEADER, SEGMENT_HEADER, Salt, SegmentHeader};
use super::segments::{self, Segment, Shared};
use super::walk::{Group, Stretch, is_zero};
use super::{
    Active, Damage, Disk, DiskFile, Journal, JournalError, JournalOptions, Place, Record, Recovery,
    SyncPoint, spares,
};

/// Bytes that are read at a time.
const PIECE: usize = 256 * 1024;

/// A segment file at the start.
struct Found<D: Disk> {
    id: u32,
    file: Arc<D::File>,
    size: u64,
    /// `None`: torn or damaged.
    header: Option<SegmentHeader>,
    /// Its first sequence, by its header or else by its first group; `None`: there is neither.
    first: Option<Seq>,
}

/// What a segment turned out to hold.
struct Extent {
    first: Seq,
    /// Before `first`: nothing.
    last: Seq,
    /// Where its valid bytes end.
    end: u32,
    /// Whether there are only zeros behind.
    clean: bool,
    /// Records in it were durable, readable or not.
    durable: bool,
    /// Where the groups begin that nothing proves durable, and their bytes.
    unproven: Option<(u32, Vec<u8>)>,
}

impl<D: Disk> Journal<D> {
    /// Replays every valid record with a sequence after `after` in order through `apply`. What it replayed is durable when it returns,
    /// and the next group can be staged. `after`: what the caller has already. `durable`: up to where everything is known to have been durable,
    /// because something says so that was written later.
    pub fn recover(
        disk: Arc<D>,
        options: JournalOptions,
        (after, durable): (Seq, Seq),
        apply: &mut dyn FnMut(Record<'_>),
    ) -> Result<(Self, Recovery), JournalError> {
        let salt = Salt(options.salt);
        let names = disk.list().map_err(JournalError::io("listing the data directory"))?;
        let (stale, mut found) = find(&*disk, &names, salt)?;
        let mut replay = Replay { salt, after, durable, next: Seq(1), apply, report: Recovery::default() };
        let mut extents = replay.all(&found, !stale.is_empty())?;
        let head = Seq(replay.next.0 - 1);
        if head < durable {
            return Err(JournalError::Short { head, durable });
        }
        let dropped = drop_unborn(&mut found, &mut extents);
        let active = settle_tail(&*disk, &found, &extents, dropped.as_ref(), salt)?;
        for id in stale.into_iter().chain(dropped.map(|dropped| dropped.id)) {
            let name = segments::name(id);
            disk.remove(&name).map_err(JournalError::io(format!("removing {name}")))?;
        }
        let (spares, spare_bytes) = spares::adopt(&disk, &names, options.segment_bytes)?;
        let next_spare = spares.last().map_or(1, |(number, _)| number + 1);
        let spares = spares.into_iter().map(|(_, name)| name).collect();

        let Replay { next, mut report, .. } = replay;
        report.head = Seq(next.0 - 1);
        report.segments = found.len();
        let segments = found.into_iter().zip(extents).map(|(found, extent)| {
            let Extent { first, last, end, .. } = extent;
            Arc::new(Segment::new(found.id, first, found.file, found.size, end, last))
        });
        let damaged = report.corrupt.iter().map(|damage| damage.place);
        let shared = Arc::new(Shared::new(salt, segments.collect(), report.head, damaged));
        let (parts, buffer) = (Vec::new(), Vec::new());
        let mut journal = Self {
            disk,
            options,
            salt,
            shared,
            active,
            spares,
            next_spare,
            found_bytes: 0,
            parts,
            buffer,
            next,
            poisoned: false,
        };
        let segments = journal.shared.segments();
        journal.found_bytes = spare_bytes + segments.iter().map(|segment| segment.size).sum::<u64>();
        journal.replenish()?;
        Ok((journal, report))
    }
}

/// The segment files: first the ids of leftovers (removals that a power loss undid in part), then the unbroken row up to the newest.
fn find<D: Disk>(disk: &D, names: &[String], salt: Salt) -> Result<(Vec<u32>, Vec<Found<D>>), JournalError> {
    let mut ids: Vec<u32> = names.iter().filter_map(|name| segments::parse_name(name)).collect();
    ids.sort_unstable();
    let mut found = Vec::with_capacity(ids.len());
    for &id in &ids {
        let doing = || JournalError::io(format!("reading {}", segments::name(id)));
        let file = disk.open(&segments::name(id)).map_err(doing())?;
        let size = file.len().map_err(doing())?;
        let mut start = [0; SEGMENT_HEADER as usize];
        let read = file.read_at(&mut start, 0).map_err(doing())?;
        let header = match SegmentHeader::decode(&start[..read], id, salt) {
            FoundHeader::Valid(header) => Some(header),
            FoundHeader::Newer(version) => return Err(JournalError::Newer { segment: id, version }),
            FoundHeader::Foreign => return Err(JournalError::Foreign { segment: id }),
            FoundHeader::Bad => None,
        };
        found.push(Found {
            id,
            file: Arc::new(file),
            size,
            header,
            first: header.map(|header| header.first),
        });
    }
    let row = (1..ids.len()).rev().find(|&index| ids[index] != ids[index - 1] + 1).unwrap_or(0);
    let mut usable = found.split_off(row);
    for damaged in usable.iter_mut().filter(|found| found.header.is_none()) {
        let bytes = damaged.read(u32::MAX)?;
        damaged.first =
            damaged.bytes(&bytes, salt).find_group(SEGMENT_HEADER).map(|group| group.header.first);
    }
    Ok((found.iter().map(|stale| stale.id).collect(), usable))
}

impl<D: Disk> Found<D> {
    /// Its bytes behind the header, up to `end`.
    fn read(&self, end: u32) -> Result<Vec<u8>, JournalError> {
        let end = self.size.min(u64::from(end)).max(u64::from(SEGMENT_HEADER));
        let doing = || JournalError::io(format!("reading {}", segments::name(self.id)));
        let mut bytes = vec![0; (end - u64::from(SEGMENT_HEADER)) as usize];
        let (mut piece, mut read) = (vec![0; PIECE.min(bytes.len())], 0);
        while read < bytes.len() {
            let wanted = (bytes.len() - read).min(PIECE);
            let got = self.file.read_at(&mut piece[..wanted], u64::from(SEGMENT_HEADER) + read as u64);
            let got = &piece[..got.map_err(doing())?];
            // Zeros that nobody writes to take no memory.
            if !is_zero(got) {
                bytes[read..read + got.len()].copy_from_slice(got);
            }
            read += got.len();
            if got.len() < wanted {
                break;
            }
        }
        bytes.truncate(read);
        Ok(bytes)
    }

    fn bytes<'a>(&self, bytes: &'a [u8], salt: Salt) -> Stretch<'a> {
        Stretch { segment: self.id, base: SEGMENT_HEADER, bytes, salt }
    }
}

/// A last segment without a group that counts, and not as fresh as its header was written, is no segment yet: it goes, and the next
/// roll puts a new file in its place. One whose records were durable and are all damaged stays: the next start, too, must see that they were.
fn drop_unborn<D: Disk>(found: &mut Vec<Found<D>>, extents: &mut Vec<Extent>) -> Option<Found<D>> {
    let (last, extent) = (found.last()?, extents.last()?);
    let unborn = extent.last < extent.first && !extent.durable && (!extent.clean || last.header.is_none());
    if !unborn {
        return None;
    }
    extents.pop();
    found.pop()
}

/// Makes the tail durable and says where the next group goes.
///
/// The header and the last group are written once more, with the same bytes: after a sync that failed in an earlier process, pages may look clean
/// that never reached the disk, and a mere sync would not write them.
fn settle_tail<D: Disk>(
    disk: &D,
    found: &[Found<D>],
    extents: &[Extent],
    dropped: Option<&Found<D>>,
    salt: Salt,
) -> Result<Active, JournalError> {
    let (Some(tail), Some(extent)) = (found.last(), extents.last()) else {
        // Nothing yet: the first roll makes the segment after this one.
        let end = dropped.and_then(|dropped| dropped.header).map_or(0, |header| header.previous_end);
        return Ok(Active { id: dropped.map_or(0, |dropped| dropped.id - 1), end, limit: 0 });
    };
    let doing = || JournalError::io(format!("making the end of {} durable", segments::name(tail.id)));
    let previous_end = extents.len().checked_sub(2).map_or(0, |index| extents[index].end);
    let header = tail.header.unwrap_or(SegmentHeader { id: tail.id, first: extent.first, previous_end });
    tail.file.write_at(&header.encode(salt), 0).map_err(doing())?;
    if let Some((at, bytes)) = &extent.unproven {
        tail.file.write_at(bytes, u64::from(*at)).map_err(doing())?;
    }
    tail.file.sync(SyncPoint::RecoveryTail).map_err(doing())?;
    disk.sync_dir(SyncPoint::RecoveryEntries).map_err(doing())?;
    let appendable = extent.clean && dropped.is_none();
    let limit = if appendable { u32::try_from(tail.size).unwrap_or(u32::MAX) & !7 } else { extent.end };
    Ok(Active { id: tail.id, end: extent.end, limit })
}

/// The walk through all segments.
struct Replay<'a> {
    salt: Salt,
    after: Seq,
    durable: Seq,
    /// The next sequence that is expected.
    next: Seq,
    apply: &'a mut dyn FnMut(Record<'_>),
    report: Recovery,
}

impl Replay<'_> {
    /// Walks the segments that matter; answers an extent for each.
    fn all<D: Disk>(&mut self, found: &[Found<D>], stale: bool) -> Result<Vec<Extent>, JournalError> {
        let wanted = Seq(self.after.0 + 1);
        let Some(oldest) = found.first() else {
            self.next = wanted;
            return if wanted > Seq(1) || stale {
                Err(JournalError::NoSegments(self.after))
            } else {
                Ok(Vec::new())
            };
        };
        if found.iter().all(|segment| segment.first.is_none()) && (wanted > Seq(1) || oldest.id > 1) {
            return Err(JournalError::NoSegments(self.after));
        }
        if let Some(header) = oldest.header.filter(|header| header.first > wanted) {
            return Err(JournalError::Missing { from: wanted, to: header.first, segment: oldest.id - 1 });
        }
        // What a checkpoint covers isn't read; but the last two segments always are, for the time of the newest group.
        let mut extents = Vec::with_capacity(found.len());
        for pair in found.windows(2).take(found.len().saturating_sub(2)) {
            let Some(next) = pair[1].header.filter(|next| next.first <= wanted) else { break };
            let last = Seq(next.first.0 - 1);
            let first = pair[0].first.unwrap_or(next.first);
            let end = next.previous_end;
            extents.push(Extent { first, last, end, clean: true, durable: true, unproven: None });
        }
        let skipped = extents.len();
        self.next = found[skipped].first.map_or(wanted, |first| first.min(wanted));
        for index in skipped..found.len() {
            extents.push(self.segment(&found[index], &found[index + 1..])?);
        }
        Ok(extents)
    }

    /// One segment; `later` ones, if they hold anything, prove that all of it was durable.
    fn segment<D: Disk>(&mut self, found: &Found<D>, later: &[Found<D>]) -> Result<Extent, JournalError> {
        let bound = later.iter().find_map(|later| later.first);
        let valid_end = later.first().and_then(|next| next.header).map_or(u32::MAX, |next| next.previous_end);
        let bytes = found.read(valid_end)?;
        let bytes = found.bytes(&bytes, self.salt);
        let mut mark = bound.map_or_else(|| self.mark(found, bytes), |bound| Seq(bound.0 - 1));
        let first = found.first.unwrap_or(self.next);
        if found.header.is_none() && first <= mark {
            self.damage("a segment's header", Place { segment: found.id, offset: 0 }, None);
        }
        self.expect(first, Place { segment: found.id, offset: SEGMENT_HEADER });

        let (mut at, mut end, mut unproven) = (SEGMENT_HEADER, SEGMENT_HEADER, None);
        let mut last = Seq(first.0 - 1);
        while let Some(group) = bytes.group_from(at) {
            at = group.end();
            if group.header.first < self.next || bound.is_some_and(|bound| group.header.first >= bound) {
                continue; // torn at an earlier recovery; what replaced it is elsewhere
            }
            // A group is durable as a whole or not at all, so its first sequence decides.
            let proven = group.header.first <= mark.max(self.durable);
            if !proven && !group.is_whole() {
                break; // the torn one
            }
            self.expect(group.header.first, Place { segment: found.id, offset: end });
            if !proven {
                unproven.get_or_insert(group.at);
            }
            self.group(&group, found.id);
            (end, last) = (group.end(), group.header.last());
        }
        let behind = bytes.written_behind(end);
        let missing = (self.durable.0 + 1).saturating_sub(self.next.0.max(mark.0 + 1));
        if bound.is_none() && missing > 0 && behind >= missing * u64::from(RECORD_HEADER) {
            mark = self.durable;
        }
        self.expect(Seq(mark.0 + 1), Place { segment: found.id, offset: end });
        if bound.is_none() && missing == 0 {
            self.report.torn_bytes += behind;
        }
        let copy =
            |at: u32| (at, bytes.bytes[(at - bytes.base) as usize..(end - bytes.base) as usize].to_vec());
        let (clean, durable) = (behind == 0, first <= mark);
        Ok(Extent { first, last, end, clean, durable, unproven: unproven.map(copy) })
    }

    /// The highest sequence of the last segment that is known to have been durable.
    fn mark<D: Disk>(&self, found: &Found<D>, bytes: Stretch<'_>) -> Seq {
        let before = found.header.map_or(Seq(0), |header| Seq(header.first.0 - 1));
        let mut mark = before.max(self.after);
        let mut at = SEGMENT_HEADER;
        while let Some(group) = bytes.group_from(at) {
            mark = mark.max(group.header.synced_before);
            at = group.end();
        }
        mark
    }

    fn group(&mut self, group: &Group<'_>, segment: u32) {
        let group_time = group.header.time;
        self.report.last_time = self.report.last_time.max(group_time);
        for record in group.records() {
            match record {
                Ok((offset, record)) => {
                    self.next = Seq(record.seq.0 + 1);
                    if record.seq > self.after {
                        let place = Place { segment, offset };
                        let (seq, kind, payload) = (record.seq, record.kind, record.payload);
                        self.report.applied += 1;
                        (self.apply)(Record { seq, kind, payload, place, group_time });
                    }
                }
                Err((offset, _, last)) => self.expect(Seq(last.0 + 1), Place { segment, offset }),
            }
        }
    }

    /// The next record should be `seq`: what is missing before it is lost.
    fn expect(&mut self, seq: Seq, place: Place) {
        if self.next < seq {
            self.damage("a stretch of durable records", place, Some((self.next, Seq(seq.0 - 1))));
            self.next = seq;
        }
    }

    fn damage(&mut self, what: &'static str, place: Place, lost: Option<(Seq, Seq)>) {
        if fault::is(Fault::DamageUnsaid) {
            return;
        }
        self.report.corrupt.push(Damage { what, place, lost });
    }
}
