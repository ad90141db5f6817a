//! A list that is empty almost always: a word then, where a vector is three. A session has several.

use std::ops::{Deref, DerefMut};

/// See the module.
#[derive(Debug)]
#[allow(clippy::box_collection)] // The box is what it is for.
pub(super) struct Few<T>(Option<Box<Vec<T>>>);

impl<T> Default for Few<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T> Few<T> {
    /// Puts one behind the others.
    pub(super) fn push(&mut self, item: T) {
        self.0.get_or_insert_default().push(item);
    }

    /// Takes them all.
    pub(super) fn take(&mut self) -> Vec<T> {
        self.0.take().map(|items| *items).unwrap_or_default()
    }

    /// These instead of those that were there.
    pub(super) fn set(&mut self, items: Vec<T>) {
        self.0 = (!items.is_empty()).then(|| Box::new(items));
    }

    /// Puts them behind the others.
    pub(super) fn extend(&mut self, items: impl Iterator<Item = T>) {
        let mut items = items.peekable();
        if items.peek().is_some() {
            self.0.get_or_insert_default().extend(items);
        }
    }

    /// Takes the first one.
    pub(super) fn pop_first(&mut self) -> Option<T> {
        let items = self.0.as_mut()?;
        let first = items.remove(0);
        if items.is_empty() {
            self.0 = None;
        }
        Some(first)
    }

    /// Drops those that are not wanted.
    pub(super) fn retain(&mut self, wanted: impl FnMut(&T) -> bool) {
        if let Some(items) = &mut self.0 {
            items.retain(wanted);
            if items.is_empty() {
                self.0 = None;
            }
        }
    }
}

impl<T> Deref for Few<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        self.0.as_ref().map_or(&[], |items| items)
    }
}

impl<T> DerefMut for Few<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        self.0.as_mut().map_or(&mut [], |items| items)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_word_and_owns_nothing_once_it_is_empty() {
        assert_eq!(size_of::<Few<u8>>(), size_of::<usize>());
        let mut few = Few::default();
        few.push(1);
        few.extend([2, 3].into_iter());
        few[2] = 4;
        assert_eq!((few.pop_first(), &few[..]), (Some(1), &[2, 4][..]));
        few.retain(|item| *item > 2);
        assert_eq!(few.pop_first(), Some(4));
        assert!(few.0.is_none() && few.pop_first().is_none());
        few.set(vec![5]);
        few.retain(|_| false);
        assert!(few.0.is_none());
        few.set(vec![6]);
        assert_eq!((few.take(), few.0.is_none()), (vec![6], true));
        few.set(Vec::new());
        few.extend(std::iter::empty());
        assert!(few.0.is_none() && few.is_empty());
    }
}
