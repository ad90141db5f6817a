//! What is counted: the totals, the daily statistics, and which push records have changed since they were last written to the tables.
//!
//! All of it is as of one sequence, and it is written in the same transaction as that sequence: so a record that is replayed counts exactly
//! if the tables don't reflect it yet. Which devices were active on a day is a set, to which adding twice changes nothing; it doesn't
//! rest on records, so that a session that only came and went costs none.
//!
//! A day is the event's, in the configured zone: a message accepted before midnight and acknowledged after it counts as accepted on the
//! one day and as arrived on the next. Days are kept for [`DAYS_KEPT`]; sets only while they may grow.

use std::collections::{BTreeMap, HashMap};

use roaring::RoaringBitmap;

use super::codec::{Malformed, Take, put_bytes, put_u32, put_varint};
use super::push_record::{MessageKey, NumberSet};
use super::second_chance::SecondChance;
use super::tables::{Table, Tables, TablesError, Writes, new_row, row_content};
use super::{DayStats, counts};
use crate::ids::{AppKey, DeviceKey, Seq};
use crate::push::{Counts, Millis};

/// Days of statistics that are kept.
pub(super) const DAYS_KEPT: u32 = 30;
const DAY_MS: i64 = 24 * 3600 * 1000;
/// A set of active devices is written at most so often: it is large, and after a crash devices come back and say so again.
const ACTIVE_EVERY_MS: Millis = 10_000;
/// The row of what there is one of.
const TOTALS: &[u8] = b"totals";

/// A day since 1970-01-01 in the configured zone.
pub(super) type Day = u32;

/// The day of a time, in a zone so many minutes east of UTC.
pub(super) fn day_of(at: Millis, zone_minutes: i32) -> Day {
    let local = at as i64 + i64::from(zone_minutes) * 60_000;
    Day::try_from(local.div_euclid(DAY_MS)).unwrap_or(0)
}

#[derive(Debug)]
struct Row {
    app: AppKey,
    day: Day,
    /// But for `pending`, which is no day's.
    counts: Counts,
    registered: u64,
    active: u64,
    dirty: bool,
}

#[derive(Debug, Default)]
struct Active {
    devices: RoaringBitmap,
    dirty: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// Everything since the data directory was made.
    pub(super) totals: Counts,
    /// Devices with lower numbers have been counted as registered.
    pub(super) registered_below: u32,
    zone_minutes: i32,
    rows: Vec<Row>,
    places: HashMap<(AppKey, Day), usize>,
    /// Where the last look-up ended: most follow one of the same app and day.
    last: usize,
    active: BTreeMap<(AppKey, Day), Active>,
    active_dirty: bool,
    active_written_at: Millis,
    /// Of the newest time seen.
    today: Day,
    totals_dirty: bool,
    /// Push records that have changed; each once.
    pub(super) changed: Vec<MessageKey>,
    /// Rows of push records that go.
    pub(super) gone: Vec<Seq>,
    /// Rows of days that go.
    old: Vec<(Table, Vec<u8>)>,
    /// Devices whose cold rows have changed; each once, or gone and there again.
    pub(super) changed_rows: Vec<DeviceKey>,
    /// Numbers of devices whose rows go.
    pub(super) gone_rows: Vec<u32>,
    /// Push records in memory, the longest there first. Some may have gone.
    pub(super) hot: SecondChance<MessageKey>,
    /// So many of them have gone without being looked at: they were forgotten.
    pub(super) hot_gone: usize,
    /// Bytes of them, about.
    pub(super) hot_bytes: usize,
    /// Push records read back.
    pub(super) reads: u64,
    /// Rows of devices read.
    pub(super) row_reads: u64,
    /// Those of them that weren't as they were written, and aren't counted elsewhere yet.
    pub(super) damaged_rows: u64,
}

impl Ledger {
    pub(super) fn new(zone_minutes: i32) -> Self {
        Self { zone_minutes, ..Self::default() }
    }

    /// What the tables hold.
    pub(super) fn read(tables: &dyn Tables, zone_minutes: i32) -> Result<Self, TablesError> {
        let mut ledger = Self::new(zone_minutes);
        let damaged = |_| TablesError::Damaged { what: "the statistics aren't of this version".into() };
        if let Some(row) = tables.get(Table::Single, TOTALS)? {
            ledger.take_totals(row_content(Table::Single, TOTALS, &row)?).map_err(damaged)?;
        }
        for table in [Table::Days, Table::Active] {
            let mut failed = Ok(());
            tables.scan(table, &mut |key, row| {
                if failed.is_ok() {
                    failed = row_content(table, key, row).and_then(|row| {
                        let taken = if table == Table::Days {
                            ledger.take_day(key, row)
                        } else {
                            ledger.take_active(key, row)
                        };
                        taken.map_err(damaged)
                    });
                }
            })?;
            failed?;
        }
        Ok(ledger)
    }

    fn take_totals(&mut self, row: &[u8]) -> Result<(), Malformed> {
        let mut take = Take(row);
        self.registered_below = take.u32()?;
        self.totals = counts::take(&mut take)?;
        Ok(())
    }

    fn take_day(&mut self, key: &[u8], row: &[u8]) -> Result<(), Malformed> {
        let (app, day) = take_key(key)?;
        let mut take = Take(row);
        let (registered, active, counts) = (take.varint()?, take.varint()?, counts::take(&mut take)?);
        self.places.insert((app.clone(), day), self.rows.len());
        self.today = self.today.max(day);
        self.rows.push(Row { app, day, counts, registered, active, dirty: false });
        Ok(())
    }

    fn take_active(&mut self, key: &[u8], row: &[u8]) -> Result<(), Malformed> {
        let (app, day) = take_key(key)?;
        let devices = match NumberSet::decode(&mut Take(row))? {
            NumberSet::Empty => RoaringBitmap::new(),
            NumberSet::One(one) => RoaringBitmap::from_iter([one]),
            NumberSet::Many(many) => *many,
        };
        // The day's count may have been written with a younger set, which is lost.
        let place = self.place(&app, day);
        self.rows[place].active = devices.len();
        self.active.insert((app, day), Active { devices, dirty: false });
        Ok(())
    }

    fn place(&mut self, app: &AppKey, day: Day) -> usize {
        if self.rows.get(self.last).is_some_and(|row| row.day == day && row.app == *app) {
            return self.last;
        }
        let next = self.rows.len();
        self.last = *self.places.entry((app.clone(), day)).or_insert(next);
        if self.last == next {
            let (app, counts) = (app.clone(), Counts::default());
            self.rows.push(Row { app, day, counts, registered: 0, active: 0, dirty: true });
        }
        self.last
    }

    /// Counts in the totals, and on the day of `at`.
    pub(super) fn count(&mut self, app: &AppKey, at: Millis, change: impl Fn(&mut Counts)) {
        self.totals_dirty = true;
        change(&mut self.totals);
        let place = self.place(app, day_of(at, self.zone_minutes));
        let row = &mut self.rows[place];
        change(&mut row.counts);
        row.dirty = true;
    }

    /// Counts something at each of these times; most are on the same day.
    pub(super) fn count_times(
        &mut self,
        app: &AppKey,
        times: impl Iterator<Item = Millis>,
        change: impl Fn(&mut Counts, u64),
    ) {
        let zone_minutes = self.zone_minutes;
        let mut count = |at: Millis, times: u64| {
            if times > 0 {
                self.count(app, at, |counts| change(counts, times));
            }
        };
        let (mut day, mut begun, mut so_far) = (0, 0, 0);
        for at in times {
            let of = day_of(at, zone_minutes);
            if of != day {
                count(begun, so_far);
                (day, begun, so_far) = (of, at, 0);
            }
            so_far += 1;
        }
        count(begun, so_far);
    }

    /// Entries that are pending, or no longer.
    pub(super) fn count_pending(&mut self, more: u64, less: u64) {
        self.totals_dirty = true;
        self.totals.pending = (self.totals.pending + more).saturating_sub(less);
    }

    /// A device was made known. Its number tells whether for the first time.
    pub(super) fn registered(&mut self, app: &AppKey, number: u32, at: Millis) {
        if number < self.registered_below {
            return;
        }
        self.registered_below = number.saturating_add(1);
        self.totals_dirty = true;
        let place = self.place(app, day_of(at, self.zone_minutes));
        self.rows[place].registered += 1;
        self.rows[place].dirty = true;
    }

    /// A device did something. Earlier than yesterday is no news.
    pub(super) fn active(&mut self, app: &AppKey, number: u32, at: Millis) {
        self.active_all(app, [(number, at)].into_iter());
    }

    /// Devices of an app did something, most of them on the same day.
    pub(super) fn active_all(&mut self, app: &AppKey, devices: impl Iterator<Item = (u32, Millis)>) {
        let zone_minutes = self.zone_minutes;
        let mut devices = devices.map(|(number, at)| (number, day_of(at, zone_minutes))).peekable();
        while let Some((_, day)) = devices.peek().copied() {
            let same = std::iter::from_fn(|| devices.next_if(|(_, of)| *of == day));
            if day + 1 < self.today {
                same.for_each(drop);
                continue;
            }
            let known = self.active.entry((app.clone(), day)).or_default();
            let new = same.filter(|(number, _)| known.devices.insert(*number)).count();
            if new == 0 {
                continue;
            }
            known.dirty = true;
            let place = self.place(app, day);
            self.rows[place].active += new as u64;
            self.rows[place].dirty = true;
            self.active_dirty = true;
        }
    }

    /// Statistics of the newest days, the newest first.
    pub(super) fn days(&self, app: &AppKey, days: u32, now: Millis) -> Vec<DayStats> {
        let today = day_of(now, self.zone_minutes);
        let of = |day: Day| {
            let row = self.places.get(&(app.clone(), day)).map(|&place| &self.rows[place]);
            DayStats {
                day,
                counts: row.map(|row| row.counts.clone()).unwrap_or_default(),
                registered: row.map_or(0, |row| row.registered),
                active: row.map_or(0, |row| row.active),
            }
        };
        (0..days.min(DAYS_KEPT)).map_while(|back| today.checked_sub(back)).map(of).collect()
    }

    /// A new day: old ones go.
    fn age(&mut self, now: Millis) {
        let today = day_of(now, self.zone_minutes);
        if today <= self.today {
            return;
        }
        self.today = today;
        let old = &mut self.old;
        self.active.retain(|(app, day), _| {
            let kept = day + 1 >= today;
            if !kept {
                old.push((Table::Active, day_key(app, *day)));
            }
            kept
        });
        self.rows.retain(|row| {
            let kept = row.day + DAYS_KEPT > today;
            if !kept {
                old.push((Table::Days, day_key(&row.app, row.day)));
            }
            kept
        });
        self.last = 0;
        self.places =
            self.rows.iter().enumerate().map(|(at, row)| ((row.app.clone(), row.day), at)).collect();
    }

    /// From when on there is something to write; `None`: nothing.
    pub(super) fn due_at(&self) -> Option<Millis> {
        let counted = self.totals_dirty || !self.changed.is_empty() || !self.gone.is_empty();
        if counted || !self.changed_rows.is_empty() || !self.gone_rows.is_empty() {
            return Some(0);
        }
        self.active_dirty.then_some(self.active_written_at + ACTIVE_EVERY_MS)
    }

    /// Everything that has changed but push records and rows of devices, to be written; with `all` also what could wait.
    pub(super) fn put(&mut self, now: Millis, all: bool, writes: &mut Writes) {
        self.age(now);
        writes.extend(self.old.drain(..).map(|place| (place, None)));
        if std::mem::take(&mut self.totals_dirty) {
            let mut row = new_row();
            put_u32(&mut row, self.registered_below);
            counts::put(&mut row, &self.totals);
            writes.insert((Table::Single, TOTALS.to_vec()), Some(row));
        }
        for row in &mut self.rows {
            if !std::mem::take(&mut row.dirty) {
                continue;
            }
            let mut bytes = new_row();
            put_varint(&mut bytes, row.registered);
            put_varint(&mut bytes, row.active);
            counts::put(&mut bytes, &row.counts);
            writes.insert((Table::Days, day_key(&row.app, row.day)), Some(bytes));
        }
        for seq in self.gone.drain(..) {
            writes.insert((Table::Messages, seq.0.to_be_bytes().to_vec()), None);
        }
        if !self.active_dirty || !all && now < self.active_written_at + ACTIVE_EVERY_MS {
            return;
        }
        (self.active_dirty, self.active_written_at) = (false, now);
        for ((app, day), set) in self.active.iter_mut().filter(|(_, set)| set.dirty) {
            set.dirty = false;
            let mut bytes = new_row();
            NumberSet::Many(Box::new(set.devices.clone())).encode(&mut bytes);
            writes.insert((Table::Active, day_key(app, *day)), Some(bytes));
        }
    }
}

fn day_key(app: &AppKey, day: Day) -> Vec<u8> {
    let mut key = Vec::with_capacity(40);
    put_bytes(&mut key, app.as_str().as_bytes());
    key.extend_from_slice(&day.to_be_bytes());
    key
}

fn take_key(key: &[u8]) -> Result<(AppKey, Day), Malformed> {
    let mut take = Take(key);
    let app = AppKey::parse(take.text()?).ok_or(Malformed)?;
    Ok((app, Day::from_be_bytes(take.array()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: Millis = 1_800_014_400_000;
    const HOUR: Millis = 3_600_000;

    fn app() -> AppKey {
        AppKey::parse("app").expect("valid")
    }

    #[test]
    fn a_day_begins_at_midnight_of_its_zone() {
        let utc = day_of(NOON, 0);
        let midnight = u64::from(utc) * DAY_MS as u64;
        assert_eq!((day_of(midnight, 0), day_of(midnight - 1, 0)), (utc, utc - 1));
        assert_eq!((day_of(midnight - 8 * HOUR, 480), day_of(midnight - 8 * HOUR - 1, 480)), (utc, utc - 1));
        assert_eq!(day_of(midnight, -60), utc - 1);
        assert_eq!(day_of(0, -60), 0);
    }

    #[test]
    fn each_event_counts_on_its_own_day_and_in_the_totals() {
        let mut ledger = Ledger::new(0);
        let yesterday = NOON - 24 * HOUR;
        ledger.count(&app(), yesterday, |counts| counts.accepted += 2);
        ledger.count(&app(), NOON, |counts| counts.arrived += 1);
        ledger.registered(&app(), 0, yesterday);
        ledger.registered(&app(), 0, NOON);
        ledger.active(&app(), 0, yesterday);
        ledger.active(&app(), 0, NOON);
        ledger.active(&app(), 0, NOON);
        ledger.active(&app(), 1, NOON);
        let days = ledger.days(&app(), 3, NOON);
        let figures: Vec<_> = days
            .iter()
            .map(|day| (day.counts.accepted, day.counts.arrived, day.registered, day.active))
            .collect();
        assert_eq!(figures, [(0, 1, 0, 2), (2, 0, 1, 1), (0, 0, 0, 0)]);
        assert_eq!((ledger.totals.accepted, ledger.totals.arrived), (2, 1));
        let other = AppKey::parse("other").expect("valid");
        assert_eq!(ledger.days(&other, 1, NOON)[0].counts, Counts::default());
    }

    #[test]
    fn many_count_each_on_its_day() {
        let yesterday = NOON - 24 * HOUR;
        let times = [NOON, NOON + HOUR, yesterday, NOON, yesterday - 24 * HOUR, NOON];
        let (mut apart, mut together) = (Ledger::new(0), Ledger::new(0));
        apart.count(&app(), NOON, |counts| counts.accepted += 1);
        apart.age(NOON);
        together.count(&app(), NOON, |counts| counts.accepted += 1);
        together.age(NOON);
        for (number, at) in (0..).zip(times) {
            apart.count(&app(), at, |counts| counts.sent += 1);
            apart.active(&app(), number / 2, at);
        }
        together.count_times(&app(), times.into_iter(), |counts, times| counts.sent += times);
        together.active_all(&app(), (0..).zip(times).map(|(number, at)| (number / 2, at)));
        assert_eq!(together.days(&app(), 5, NOON), apart.days(&app(), 5, NOON));
        let figures: Vec<_> =
            together.days(&app(), 3, NOON).iter().map(|day| (day.counts.sent, day.active)).collect();
        assert_eq!(figures, [(4, 3), (1, 1), (1, 0)]);
        assert_eq!(together.totals, apart.totals);
    }

    #[test]
    fn old_days_and_sets_go() {
        let mut ledger = Ledger::new(0);
        for back in 0..40 {
            let at = NOON - (39 - back) * 24 * HOUR;
            ledger.count(&app(), at, |counts| counts.accepted += 1);
            ledger.active(&app(), 1, at);
            let mut writes = Writes::new();
            ledger.put(at, true, &mut writes);
            let gone = writes.values().filter(|row| row.is_none()).count();
            assert_eq!(gone, usize::from(back >= 2) + usize::from(back >= 30), "a set, and a day's row");
        }
        assert_eq!((ledger.rows.len(), ledger.places.len(), ledger.active.len()), (30, 30, 2));
        let days = ledger.days(&app(), 90, NOON);
        assert_eq!((days.len(), days[29].counts.accepted, days[29].active), (30, 1, 1));
        assert_eq!(ledger.totals.accepted, 40);
    }

    /// Whether something is due, and whether a set of active devices is written, or a day.
    fn written(ledger: &mut Ledger, now: Millis, all: bool) -> (Option<Millis>, bool, bool) {
        let due = ledger.due_at();
        let mut writes = Writes::new();
        ledger.put(now, all, &mut writes);
        let has = |table| writes.keys().any(|(of, _)| *of == table);
        (due, has(Table::Active), has(Table::Days))
    }

    #[test]
    fn a_set_of_active_devices_waits_and_what_is_counted_does_not() {
        let mut ledger = Ledger::new(0);
        assert_eq!(written(&mut ledger, NOON, true), (None, false, false));
        ledger.active(&app(), 1, NOON);
        assert_eq!(written(&mut ledger, NOON, false), (Some(ACTIVE_EVERY_MS), true, true));
        ledger.active(&app(), 1, NOON + 1);
        assert_eq!(written(&mut ledger, NOON + 1, true), (None, false, false), "said before");
        ledger.active(&app(), 2, NOON + 2);
        let next = NOON + ACTIVE_EVERY_MS;
        assert_eq!(written(&mut ledger, next - 1, false), (Some(next), false, true));
        assert_eq!(written(&mut ledger, next, false), (Some(next), true, false));
        ledger.active(&app(), 3, next + 1);
        assert_eq!(written(&mut ledger, next + 1, true), (Some(next + ACTIVE_EVERY_MS), true, true));
        ledger.registered(&app(), 7, next);
        assert_eq!(written(&mut ledger, next + 2, false), (Some(0), false, true));
        ledger.registered(&app(), 3, next);
        assert_eq!(written(&mut ledger, next + 3, false), (None, false, false), "known before");
    }

    #[test]
    fn who_was_active_yesterday_still_counts() {
        let mut ledger = Ledger::new(0);
        let day = 24 * HOUR;
        ledger.active(&app(), 1, NOON);
        ledger.put(NOON, true, &mut Writes::new());
        for back in 1..=2 {
            ledger.active(&app(), 1, NOON - back * day);
        }
        let active: Vec<u64> = ledger.days(&app(), 3, NOON).iter().map(|day| day.active).collect();
        assert_eq!(active, [1, 1, 0]);
    }

    #[test]
    fn what_was_written_is_read_back_and_goes_on() {
        let other = AppKey::parse("other").expect("valid");
        let mut ledger = Ledger::new(0);
        for app in [&app(), &other, &app()] {
            ledger.count(app, NOON, |counts| counts.accepted += 1);
        }
        ledger.registered(&app(), 4, NOON);
        ledger.active(&app(), 4, NOON);
        ledger.active(&app(), 5, NOON);
        let mut writes = Writes::new();
        ledger.put(NOON, true, &mut writes);
        let mut again = Ledger::new(0);
        for ((table, key), row) in &writes {
            let row = row_content(*table, key, row.as_deref().expect("written")).expect("whole");
            match table {
                Table::Days => again.take_day(key, row),
                Table::Active => again.take_active(key, row),
                _ => again.take_totals(row),
            }
            .expect("of this version");
        }
        for ledger in [&mut ledger, &mut again] {
            ledger.active(&app(), 5, NOON);
            let day = |app| ledger.days(app, 1, NOON).remove(0);
            let (one, two) = (day(&app()), day(&other));
            assert_eq!((one.counts.accepted, one.registered, one.active), (2, 1, 2));
            assert_eq!((two.counts.accepted, two.registered, two.active), (1, 0, 0));
            assert_eq!((ledger.totals.accepted, ledger.registered_below), (3, 5));
        }
    }

    #[test]
    fn each_change_makes_the_tables_due() {
        let mut ledgers = [(); 4].map(|()| Ledger::new(0));
        let [record, gone, row, gone_row] = &mut ledgers;
        record.changed.push(MessageKey(1));
        gone.gone.push(Seq(1));
        row.changed_rows.push(DeviceKey([1; 16]));
        gone_row.gone_rows.push(1);
        assert_eq!(ledgers.map(|ledger| ledger.due_at()), [Some(0); 4]);
    }
}
