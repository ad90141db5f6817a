//! What a session has only now and then: one word for all of it, while there is none.

use super::outbox::Outbox;
use super::state::{Received, Waiting};
use crate::ids::{MessageId, Seq};
use crate::limits;
use crate::machine::told::Told;
use crate::push::Millis;
use crate::store::Pulled;

/// See the module.
#[derive(Default)]
pub(super) struct Seldom(Option<Box<Parts>>);

/// What there may be.
pub(super) struct Parts {
    /// Ids of Hello that are not to be sent, until the list was drained once.
    pub received: Option<Received>,
    /// Pulled, which counts as written, and not written: the first one waits for its body. Asked for again, they would come as redelivered,
    /// and those of retention 0 not at all.
    pub unwritten: Vec<Pulled>,
    /// Of messages that were taken back while it was away.
    pub told: Told,
    /// Requests that wait until they are durable, oldest first; at most `limits::SESSION_REQUESTS`.
    pub replies: Vec<Waiting>,
    /// Of entries that have ended, by what doesn't forbid to write them; at most [`limits::WINDOW`].
    pub unsent: Vec<UnsentCopy>,
}

/// A push that was handed to the connection, and may wait there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct UnsentCopy {
    pub batch: Seq,
    pub message: MessageId,
    /// When it was handed over, milliseconds.
    pub sent_at: Millis,
}

impl Parts {
    fn new() -> Self {
        let (unwritten, replies, unsent) = (Vec::new(), Vec::new(), Vec::new());
        Self { received: None, unwritten, told: Told::Settled, replies, unsent }
    }

    fn is_nothing(&self) -> bool {
        let Self { received, unwritten, told, replies, unsent } = self;
        let waits = !unwritten.is_empty() || !replies.is_empty() || !unsent.is_empty();
        received.is_none() && *told == Told::Settled && !waits
    }
}

impl Seldom {
    /// Of a session that begins with these ids.
    pub(super) fn of(received: Option<Received>) -> Self {
        let mut seldom = Self::default();
        if received.is_some() {
            seldom.put(|parts| parts.received = received);
        }
        seldom
    }

    /// `None`: there is nothing.
    pub(super) fn get(&self) -> Option<&Parts> {
        self.0.as_deref()
    }

    /// Changes what there is. `None`: there is nothing.
    pub(super) fn edit<R>(&mut self, edit: impl FnOnce(&mut Parts) -> R) -> Option<R> {
        let parts = self.0.as_mut()?;
        let result = edit(parts);
        if parts.is_nothing() {
            self.0 = None;
        }
        Some(result)
    }

    /// Puts something in.
    pub(super) fn put(&mut self, put: impl FnOnce(&mut Parts)) {
        put(self.0.get_or_insert_with(|| Box::new(Parts::new())));
    }

    /// Ids of its Hello that are not to be sent.
    pub(super) fn received(&self) -> Option<&Received> {
        self.get()?.received.as_ref()
    }

    /// Whether something was pulled and not written.
    pub(super) fn has_unwritten(&self) -> bool {
        self.get().is_some_and(|parts| !parts.unwritten.is_empty())
    }

    /// Pulled and not written yet, behind what is already.
    pub(super) fn put_unwritten(&mut self, entries: impl Iterator<Item = Pulled>) {
        let mut entries = entries.peekable();
        if entries.peek().is_some() {
            self.put(|parts| parts.unwritten.extend(entries));
        }
    }

    /// Remembers one more, as long as it may wait there. `false`: there are too many.
    #[must_use]
    pub(super) fn keep_unsent(&mut self, copy: UnsentCopy, outbox: &Outbox) -> bool {
        self.put(|parts| {
            parts.unsent.retain(|earlier| outbox.may_hold(earlier.sent_at));
            if parts.unsent.len() < limits::WINDOW {
                parts.unsent.push(copy);
            }
        });
        self.unsent().last() == Some(&copy)
    }

    /// Everything that waited was written.
    pub(super) fn handle_all_written(&mut self) {
        self.edit(|parts| parts.unsent = Vec::new());
    }

    /// Copies of entries that have ended, that may wait unsent.
    pub(super) fn unsent(&self) -> &[UnsentCopy] {
        self.get().map_or(&[], |parts| &parts.unsent)
    }

    /// What the device is owed.
    pub(super) fn told(&self) -> Told {
        self.get().map_or(Told::Settled, |parts| parts.told)
    }

    /// Requests that wait.
    pub(super) fn replies(&self) -> &[Waiting] {
        self.get().map_or(&[], |parts| &parts.replies)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::MessageId;

    #[test]
    fn it_is_a_word_and_owns_nothing_once_there_is_nothing() {
        assert_eq!(size_of::<Seldom>(), size_of::<usize>());
        assert!(Seldom::of(None).get().is_none());
        let mut seldom = Seldom::of(Received::of(vec![MessageId(7)]));
        assert!(seldom.received().is_some());
        seldom.put(|parts| parts.told = Told::owing());
        seldom.put(|parts| parts.replies.push(Waiting { request_id: 1, answer: None }));
        assert_eq!((seldom.told(), seldom.replies().len()), (Told::owing(), 1));
        seldom.edit(|parts| parts.received = None);
        seldom.edit(|parts| parts.told = Told::Settled);
        assert!(seldom.get().is_some() && !seldom.has_unwritten());
        assert!(seldom.edit(|parts| parts.replies.pop()).flatten().is_some());
        assert!(seldom.get().is_none() && seldom.replies().is_empty() && seldom.told() == Told::Settled);
        assert!(seldom.edit(|_| ()).is_none());
        seldom.put_unwritten(std::iter::empty());
        assert!(seldom.get().is_none());
    }
}
