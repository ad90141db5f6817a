//! A list that is empty almost always: a word then, where a vector is three.

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
    /// Takes them all.
    pub(super) fn take(&mut self) -> Vec<T> {
        self.0.take().map(|items| *items).unwrap_or_default()
    }

    /// These instead of those that were there.
    pub(super) fn set(&mut self, items: Vec<T>) {
        self.0 = (!items.is_empty()).then(|| Box::new(items));
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
        few.set(vec![6, 7]);
        few[1] = 8;
        assert_eq!((few.take(), few.0.is_none()), (vec![6, 8], true));
        few.set(Vec::new());
        assert!(few.0.is_none() && few.is_empty() && few.take().is_empty());
    }
}
