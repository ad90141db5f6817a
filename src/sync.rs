//! Locks between threads, and the places where the order of threads matters beside them.
//!
//! In every build but that of this crate's own unit tests these are the standard library's, and [`step`] is nothing. There they are a
//! scheduler's where a model runs ([`crate::models`]): so a model runs the code itself, not a retelling of it.

#[cfg(not(test))]
pub(crate) use std::sync::{Condvar, Mutex, MutexGuard};

#[cfg(test)]
pub(crate) use crate::models::sync::{Condvar, Mutex, MutexGuard, step};

/// Between the calls before and after it another thread may do anything that it may do at all: for what the scheduler doesn't see, as an
/// atomic, a channel, or a map with locks of its own.
#[cfg(not(test))]
#[inline(always)]
pub(crate) const fn step() {}
