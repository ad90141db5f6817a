//! What an app may do: rates by the configuration, and what an operator set over them.

/// What an app may do; 0: no bound.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Rates {
    /// Batches a second.
    pub batches_per_s: u32,
    /// Targets a second.
    pub targets_per_s: u32,
    /// New sessions a second.
    pub sessions_per_s: u32,
    /// Sessions at a time.
    pub max_sessions: u32,
}

impl Rates {
    /// These, with what an operator set over them.
    #[must_use]
    pub fn under(self, set: &RateOverrides) -> Self {
        let [batches, targets, sessions, max_sessions] = set.0;
        Self {
            batches_per_s: batches.unwrap_or(self.batches_per_s),
            targets_per_s: targets.unwrap_or(self.targets_per_s),
            sessions_per_s: sessions.unwrap_or(self.sessions_per_s),
            max_sessions: max_sessions.unwrap_or(self.max_sessions),
        }
    }
}

/// Rates that an operator set, in the order of [`Rates`]; `None`: as configured.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RateOverrides([Option<u32>; 4]);

/// Rates that an operator sets, in the order of [`Rates`]. `None`: stays; `Some(None)`: as configured.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[allow(clippy::option_option)] // Two questions: whether it changes, and to what.
pub struct RateChange(pub [Option<Option<u32>>; 4]);

impl RateOverrides {
    /// In the order of [`Rates`].
    pub fn of(rates: [Option<u32>; 4]) -> Self {
        Self(rates)
    }

    /// In the order of [`Rates`].
    pub fn all(&self) -> [Option<u32>; 4] {
        self.0
    }

    /// With a change.
    #[must_use]
    pub fn changed(mut self, change: &RateChange) -> Self {
        for (rate, change) in self.0.iter_mut().zip(&change.0) {
            if let Some(new) = change {
                *rate = *new;
            }
        }
        self
    }
}

/// What an operator set for an app at run time.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct AppControl {
    /// New pushes are refused; devices, and what is pending, go on.
    pub suspended: bool,
    /// Rates over those of the configuration.
    pub rates: RateOverrides,
}
