//! The locks of [`crate::sync`] in unit tests: the scheduler's if they are made in a model, else the standard library's.

use std::ops::{Deref, DerefMut};
use std::sync::{LockResult, PoisonError, TryLockError, TryLockResult};
use std::time::Duration;

use shuttle::sync as model;

use super::{in_model, pass};

/// A sleep of at least this long has to be ended by a wake-up: in a model it never ends by itself, so that one that was forgotten is found,
/// though the next look some seconds later would make up for it.
const LONG: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(crate) enum Mutex<T> {
    Free(std::sync::Mutex<T>),
    Model(model::Mutex<T>),
}

#[derive(Debug)]
pub(crate) enum MutexGuard<'a, T> {
    Free(std::sync::MutexGuard<'a, T>),
    Model(model::MutexGuard<'a, T>, &'a model::Mutex<T>),
}

#[derive(Debug)]
pub(crate) enum Condvar {
    Free(std::sync::Condvar),
    Model(model::Condvar),
}

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        if in_model() {
            return Self::Model(model::Mutex::new(value));
        }
        Self::Free(std::sync::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> LockResult<MutexGuard<'_, T>> {
        match self {
            Self::Free(mutex) => either(mutex.lock(), MutexGuard::Free),
            Self::Model(mutex) => either(mutex.lock(), |guard| MutexGuard::Model(guard, mutex)),
        }
    }

    /// `None`: somebody has it.
    pub(crate) fn try_lock(&self) -> TryLockResult<MutexGuard<'_, T>> {
        match self {
            Self::Free(mutex) => {
                Ok(MutexGuard::Free(mutex.try_lock().map_err(|_| TryLockError::WouldBlock)?))
            }
            Self::Model(mutex) => {
                Ok(MutexGuard::Model(mutex.try_lock().map_err(|_| TryLockError::WouldBlock)?, mutex))
            }
        }
    }
}

impl<T: Default> Default for Mutex<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        match self {
            Self::Free(guard) => guard,
            Self::Model(guard, _) => guard,
        }
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        match self {
            Self::Free(guard) => guard,
            Self::Model(guard, _) => guard,
        }
    }
}

impl Default for Condvar {
    fn default() -> Self {
        if in_model() { Self::Model(model::Condvar::new()) } else { Self::Free(std::sync::Condvar::new()) }
    }
}

impl Condvar {
    pub(crate) fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> LockResult<MutexGuard<'a, T>> {
        match (self, guard) {
            (Self::Free(condvar), MutexGuard::Free(guard)) => either(condvar.wait(guard), MutexGuard::Free),
            (Self::Model(condvar), MutexGuard::Model(guard, mutex)) => {
                either(condvar.wait(guard), |guard| MutexGuard::Model(guard, mutex))
            }
            _ => panic!("a lock and what waits for it are made at one place"),
        }
    }

    /// Beside the guard, whether the time was up.
    pub(crate) fn wait_timeout<'a, T>(
        &self,
        guard: MutexGuard<'a, T>,
        most: Duration,
    ) -> LockResult<(MutexGuard<'a, T>, bool)> {
        match (self, guard) {
            (Self::Free(condvar), MutexGuard::Free(guard)) => {
                either(condvar.wait_timeout(guard, most), |(guard, over)| {
                    (MutexGuard::Free(guard), over.timed_out())
                })
            }
            (Self::Model(_), MutexGuard::Model(guard, mutex)) if most < LONG => {
                drop(guard);
                step();
                pass(most);
                either(mutex.lock(), |guard| (MutexGuard::Model(guard, mutex), true))
            }
            (_, guard) => either(self.wait(guard), |guard| (guard, false)),
        }
    }

    pub(crate) fn notify_one(&self) {
        match self {
            Self::Free(condvar) => condvar.notify_one(),
            Self::Model(condvar) => condvar.notify_one(),
        }
    }

    pub(crate) fn notify_all(&self) {
        match self {
            Self::Free(condvar) => condvar.notify_all(),
            Self::Model(condvar) => condvar.notify_all(),
        }
    }
}

/// See [`crate::sync::step`].
pub(crate) fn step() {
    if in_model() {
        // Any operation of the scheduler's own is a place where it may choose another thread. Yielding would say that this one has
        // nothing to do.
        model::atomic::AtomicBool::new(false).load(std::sync::atomic::Ordering::SeqCst);
    }
}

fn either<A, B>(result: LockResult<A>, guard: impl Fn(A) -> B) -> LockResult<B> {
    match result {
        Ok(inside) => Ok(guard(inside)),
        Err(poisoned) => Err(PoisonError::new(guard(poisoned.into_inner()))),
    }
}
