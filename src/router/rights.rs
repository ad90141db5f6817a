//! What a router may do: its certificate names it, the configuration says the rest.

use std::borrow::Borrow;
use std::collections::HashSet;
use std::hash::Hash;
use std::sync::Arc;

use crate::ids::AppKey;

/// All of something, or some.
#[derive(Clone, Debug)]
pub enum Allowed<T> {
    /// Whatever there is.
    All,
    /// These only.
    Only(HashSet<T>),
}

impl<T: Eq + Hash> Allowed<T> {
    /// Whether it is among them.
    pub fn allows<Q: Eq + Hash + ?Sized>(&self, one: &Q) -> bool
    where
        T: Borrow<Q>,
    {
        match self {
            Self::All => true,
            Self::Only(these) => these.contains(one),
        }
    }
}

/// The rights of one router.
#[derive(Clone, Debug)]
pub struct Rights {
    /// The apps that it may push to and ask about.
    pub apps: Allowed<AppKey>,
    /// The streams that it may read.
    pub streams: Allowed<Arc<str>>,
}
