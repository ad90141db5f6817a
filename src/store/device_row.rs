//! The cold row of a device: what receipts, requests and operators need of it, and admission, delivery and expiry don't. It stands in
//! [`super::tables::Table::Devices`] under the device's number, and in memory while it is used, or has changed and isn't written yet.
//!
//! ```text
//! row = version u8 key (16) app device-id attributes ip bindings        bindings: how many, then the kind and the text of each
//! ```
//! The number is never used again, so that nobody is taken for who had it before. When the device was last active is no part of it: that
//! changes with every session, and is in the hot row, [`super::part::Device`].

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::codec::{Malformed, Take, put_attributes, put_bytes, put_ip, put_varint};
use super::record::device::{put_binding, take_binding};
use super::tables::new_row;
use crate::binding::{Binding, Bindings, Step};
use crate::ids::{AppKey, DeviceKey};
use crate::limits;
use crate::push::Attributes;

/// Bytes that an allocation costs beside what is in it, about: a count or two, and what the allocator keeps.
const ALLOCATION: usize = 32;

/// What a device is bound to, as far as that is in memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Bound {
    /// All of it; `None`: nothing. Shared with nobody but answers.
    Known(Option<Arc<Bindings>>),
    /// The row in the table has it.
    InTable,
}

/// A cold row in memory: 80 bytes.
#[derive(Clone, Debug)]
pub(super) struct About {
    pub(super) device_id: Arc<str>,
    pub(super) attributes: Attributes,
    /// Where it came from last; changes of it alone aren't written.
    pub(super) client_ip: Option<IpAddr>,
    /// `None`: it is bound to nothing, or the row in the table has it.
    bindings: Option<Arc<Bindings>>,
    bound_in_table: bool,
    /// It has changed since it was written, and stays in memory until it is.
    pub(super) dirty: bool,
    /// It was used since it was last looked at by whoever makes room.
    pub(super) touched: bool,
    /// As counted in [`Warmth`].
    bytes: u32,
}

/// What a device says of itself, as its row has it.
#[derive(Clone, Debug)]
pub(super) struct Says {
    pub(super) device_id: Arc<str>,
    pub(super) attributes: Attributes,
    pub(super) client_ip: Option<IpAddr>,
}

impl About {
    pub(super) fn new(says: Says, bound: Bound) -> Self {
        let Says { device_id, attributes, client_ip } = says;
        let (bindings, bound_in_table) = (None, false);
        let (dirty, touched, bytes) = (false, true, 0);
        let mut about =
            Self { device_id, attributes, client_ip, bindings, bound_in_table, dirty, touched, bytes };
        about.set_bound(bound);
        about
    }

    /// What it is bound to.
    pub(super) fn bound(&self) -> Bound {
        if self.bound_in_table { Bound::InTable } else { Bound::Known(self.bindings.clone()) }
    }

    /// It is bound to this.
    pub(super) fn set_bound(&mut self, bound: Bound) {
        self.bound_in_table = bound == Bound::InTable;
        self.bindings = match bound {
            Bound::Known(bindings) => bindings,
            Bound::InTable => None,
        };
    }

    /// Whether the row in the table has what it is bound to.
    pub(super) fn is_bound_in_table(&self) -> bool {
        self.bound_in_table
    }

    /// What it is bound to, as far as that is in memory.
    pub(super) fn bindings(&self) -> Option<&Arc<Bindings>> {
        self.bindings.as_ref()
    }

    /// Bytes that it takes, about. Of attributes that are shared only what is its own counts.
    fn measure(&self) -> usize {
        let texts = |texts: &[Arc<str>]| texts.iter().map(|text| 16 + ALLOCATION + text.len()).sum::<usize>();
        let bindings = match &self.bindings {
            Some(all) => {
                let one = all.account.as_slice().iter().chain(all.phone.as_slice());
                let one = one.map(|text| ALLOCATION + text.len()).sum::<usize>();
                size_of::<Bindings>() + ALLOCATION + one + texts(&all.aliases) + texts(&all.tags)
            }
            None => 0,
        };
        let own = size_of::<Self>() + 2 * ALLOCATION;
        own + self.device_id.len() + self.attributes.beside() + bindings
    }

    /// Takes a step; what it is bound to must be known.
    pub(super) fn apply_step(&mut self, step: &Step) {
        if self.bound_in_table {
            return;
        }
        let all = Arc::make_mut(self.bindings.get_or_insert_default());
        all.apply(step);
        if all.is_empty() {
            self.bindings = None;
        }
    }

    /// The row as the table has it. `None`: what it is bound to isn't known.
    pub(super) fn row(&self, key: DeviceKey, app: &AppKey) -> Option<Vec<u8>> {
        if self.bound_in_table {
            return None;
        }
        let mut out = new_row();
        out.reserve(64 + self.device_id.len() + self.attributes.len());
        out.extend_from_slice(&key.0);
        put_bytes(&mut out, app.as_str().as_bytes());
        put_bytes(&mut out, self.device_id.as_bytes());
        put_attributes(&mut out, self.attributes.parts());
        put_ip(&mut out, self.client_ip);
        put_bindings(&mut out, self.bindings.as_deref());
        Some(out)
    }
}

fn put_bindings(out: &mut Vec<u8>, bindings: Option<&Bindings>) {
    let Some(all) = bindings else { return put_varint(out, 0) };
    let one = all.account.iter().cloned().map(Binding::Account);
    let one = one.chain(all.phone.iter().cloned().map(Binding::Phone));
    let one = one.chain(all.aliases.iter().cloned().map(Binding::Alias));
    let one: Vec<Binding> = one.chain(all.tags.iter().cloned().map(Binding::Tag)).collect();
    put_varint(out, one.len() as u64);
    for binding in &one {
        put_binding(out, binding);
    }
}

/// What stands in a row behind its version.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Row<'a> {
    pub(super) key: DeviceKey,
    pub(super) app: &'a str,
    pub(super) device_id: &'a str,
    pub(super) attributes: &'a [u8],
    pub(super) client_ip: Option<IpAddr>,
    pub(super) bindings: Option<Bindings>,
}

impl<'a> Row<'a> {
    pub(super) fn decode(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let mut take = Take(bytes);
        let mut row = Self {
            key: DeviceKey(take.array()?),
            app: take.text()?,
            device_id: take.text()?,
            attributes: take.bytes()?,
            client_ip: take.ip()?,
            bindings: None,
        };
        let count = take.varint()?;
        if count > (2 + limits::ALIASES + limits::TAGS) as u64 || row.device_id.is_empty() {
            return Err(Malformed);
        }
        let mut bindings = Bindings::default();
        for _ in 0..count {
            bindings.apply(&Step { bound: true, binding: take_binding(&mut take)? });
        }
        row.bindings = (count > 0).then_some(bindings);
        take.0.is_empty().then_some(row).ok_or(Malformed)
    }
}

/// How many rows are in memory, and their bytes: counted by shards too.
#[derive(Debug)]
pub(super) struct Warmth {
    pub(super) rows: AtomicUsize,
    pub(super) bytes: AtomicUsize,
    /// Beyond so many bytes, rows leave memory.
    max: AtomicUsize,
}

impl Warmth {
    pub(super) fn new(max: usize) -> Self {
        Self { rows: AtomicUsize::new(0), bytes: AtomicUsize::new(0), max: AtomicUsize::new(max) }
    }

    /// Bytes beyond which rows leave memory.
    pub(super) fn max(&self) -> usize {
        self.max.load(Ordering::Relaxed)
    }

    /// Rows leave memory beyond so many bytes from now on.
    pub(super) fn set_max(&self, bytes: usize) {
        self.max.store(bytes, Ordering::Relaxed);
    }

    pub(super) fn rows(&self) -> usize {
        self.rows.load(Ordering::Relaxed)
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    pub(super) fn is_full(&self) -> bool {
        self.bytes() > self.max()
    }

    /// Whether shards should bring in no more: rows leave memory on the store's thread, which has other things to do as well.
    pub(super) fn is_overfull(&self) -> bool {
        self.bytes() > self.max().saturating_mul(2)
    }

    /// A row came into memory.
    pub(super) fn came(&self, about: &mut About) {
        about.bytes = about.measure() as u32;
        self.rows.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(about.bytes as usize, Ordering::Relaxed);
    }

    /// One that is there has changed.
    pub(super) fn changed(&self, about: &mut About) {
        let before = about.bytes;
        about.bytes = about.measure() as u32;
        self.bytes.fetch_add(about.bytes as usize, Ordering::Relaxed);
        self.bytes.fetch_sub(before as usize, Ordering::Relaxed);
    }

    /// A row left memory.
    pub(super) fn left(&self, about: &About) {
        self.rows.fetch_sub(1, Ordering::Relaxed);
        self.bytes.fetch_sub(about.bytes as usize, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tables::{Table, row_content};

    fn about() -> About {
        let bindings = Bindings {
            account: Some("alice".into()),
            phone: Some("1".into()),
            aliases: vec!["x".into(), "a".into()],
            tags: vec!["t".into()],
        };
        let attributes = Attributes::whole(b"attributes".as_slice().into());
        let says = Says { device_id: "d".into(), attributes, client_ip: Some(IpAddr::from([7; 16])) };
        About::new(says, Bound::Known(Some(Arc::new(bindings))))
    }

    /// What stands behind the version.
    fn encoded(about: &About) -> Option<Vec<u8>> {
        let row = about.row(DeviceKey([3; 16]), &AppKey::parse("app").expect("valid"))?;
        Some(row_content(Table::Devices, &[0; 4], &row).expect("of this version").to_vec())
    }

    #[test]
    fn a_row_comes_back_whole() {
        for about in [about(), About { client_ip: None, bindings: None, ..about() }] {
            let bytes = encoded(&about).expect("known");
            let row = Row::decode(&bytes).expect("a row");
            assert_eq!((row.key, row.app, row.device_id), (DeviceKey([3; 16]), "app", "d"));
            assert_eq!((row.attributes, row.client_ip), (&b"attributes"[..], about.client_ip));
            assert_eq!(Bound::Known(row.bindings.map(Arc::new)), about.bound());
        }
        let mut unknown = about();
        unknown.set_bound(Bound::InTable);
        assert_eq!(encoded(&unknown), None, "half a row is never written");
    }

    #[test]
    fn it_takes_eighty_bytes() {
        assert_eq!(size_of::<About>(), 80);
    }

    #[test]
    fn other_bytes_are_malformed_and_no_panic() {
        let whole = encoded(&about()).expect("known");
        for cut in 0..whole.len() {
            assert_eq!(Row::decode(&whole[..cut]), Err(Malformed), "cut at {cut}");
        }
        let mut longer = whole.clone();
        longer.push(0);
        assert_eq!(Row::decode(&longer), Err(Malformed));
        for at in 0..whole.len() {
            for bits in [0x01, 0x80, 0xff] {
                let mut other = whole.clone();
                other[at] ^= bits;
                // It may be another row, but nothing is read beyond the end, and nothing is reserved for a count that is none.
                drop(Row::decode(&other));
            }
        }
        let nameless = About { device_id: "".into(), ..about() };
        assert_eq!(Row::decode(&encoded(&nameless).expect("known")), Err(Malformed), "whose row is it?");
        // As many bindings as a device can have, one more, and far more.
        let of_tags = |tags: usize| {
            let all =
                Bindings { tags: (0..tags).map(|n| format!("t{n}").into()).collect(), ..Bindings::default() };
            encoded(&About { bindings: Some(Arc::new(all)), ..about() }).expect("known")
        };
        let most = 2 + limits::ALIASES + limits::TAGS;
        assert_eq!(
            Row::decode(&of_tags(most)).map(|row| row.bindings.map(|all| all.tags.len())),
            Ok(Some(most))
        );
        assert_eq!(Row::decode(&of_tags(most + 1)), Err(Malformed));
        let mut many = encoded(&About { bindings: None, ..about() }).expect("known");
        many.pop();
        put_varint(&mut many, u64::MAX);
        assert_eq!(Row::decode(&many), Err(Malformed));
    }

    #[test]
    fn memory_is_full_beyond_its_bound_and_overfull_beyond_twice_that() {
        let warmth = Warmth::new(9_999);
        warmth.bytes.store(200, Ordering::Relaxed);
        let full = |max| {
            warmth.set_max(max);
            (warmth.is_full(), warmth.is_overfull())
        };
        assert_eq!([199, 200].map(full), [(true, false), (false, false)]);
        assert_eq!([99, 100].map(full), [(true, true), (true, false)]);
    }

    #[test]
    fn bytes_are_counted_as_they_come_and_go() {
        let warmth = Warmth::new(100);
        let mut row = about();
        warmth.came(&mut row);
        let before = warmth.bytes();
        assert!(before > 100 && warmth.is_full());
        row.apply_step(&Step { bound: true, binding: Binding::Tag("u".repeat(100).as_str().into()) });
        warmth.changed(&mut row);
        assert!(warmth.bytes() >= before + 100);
        for binding in [Binding::Account("alice".into()), Binding::Phone("1".into())] {
            row.apply_step(&Step { bound: false, binding });
        }
        warmth.changed(&mut row);
        warmth.left(&row);
        assert_eq!((warmth.rows(), warmth.bytes()), (0, 0));
    }
}
