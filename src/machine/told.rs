//! Whether a device has been told of the messages that were taken back while it was away.
//!
//! A session that begins is told of what is newer than the device's last activity. So until it is known to have been told, no activity is reported,
//! which would leave those messages out on the next session: a connection that breaks right after its Hello may have lost every one of them.
//!
//! Known it is once all of them were written and the device says something later than [`LATER_MS`] behind that, with nothing waiting unsent. What
//! it says sooner may have been on its way already, and says nothing about what it has got. Being told twice does no harm.
//!
//! Rejected: a frame by which devices acknowledge it. Old ones would never say it.

use crate::push::Millis;

/// Milliseconds behind the last of them within which a device's words may have been on their way before.
pub const LATER_MS: Millis = 5_000;

/// What a session owes its device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Told {
    /// Nothing.
    Settled,
    /// Messages that were taken back since it was last active.
    Owing {
        /// When the last of them was written; `None`: some are still to be written.
        written_at: Option<Millis>,
    },
}

impl Told {
    /// Of a device that has to be told.
    pub fn owing() -> Self {
        Self::Owing { written_at: None }
    }

    /// All were written.
    pub fn handle_written(&mut self, now: Millis) {
        if let Self::Owing { written_at: at @ None } = self {
            *at = Some(now);
        }
    }

    /// The device said something, and everything that was written has left. Whether it is settled by that.
    pub fn handle_said(&mut self, now: Millis) -> bool {
        let settles = matches!(self, Self::Owing { written_at: Some(at) } if now >= *at + LATER_MS);
        if settles {
            *self = Self::Settled;
        }
        settles
    }

    /// What may be reported of a device that was active at this time.
    pub fn active(&self, at: Millis) -> Option<Millis> {
        (*self == Self::Settled).then_some(at)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What a device and its edge go through.
    #[derive(Clone, Debug)]
    enum Step {
        /// Time passes.
        Pass(Millis),
        /// The edge writes what it owes; it comes after so long, or never.
        Write(Option<Millis>),
        /// The device says something; it comes after so long.
        Say(Millis),
        /// The connection breaks, and the device comes back.
        Break,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            (1u64..20_000).prop_map(Step::Pass),
            prop_oneof![Just(None), (0u64..2_000).prop_map(Some)].prop_map(Step::Write),
            (0..LATER_MS).prop_map(Step::Say),
            Just(Step::Break),
        ];
        proptest::collection::vec(step, 1..60)
    }

    proptest! {
        /// As long as the device has not got what it is owed, no activity is reported that would leave it out; a path that loses what the edge
        /// writes loses what comes behind too, so that nothing the device says later than the bound comes over it.
        #[test]
        fn a_device_that_was_not_told_is_owed_it_on_its_next_session(steps in steps()) {
            let before = 1_000;
            let (mut now, mut last_active, mut has_got) = (1_000_000, before, false);
            // Of this session: what it owes, whether it lost something, when it was written.
            let (mut told, mut lost_at) = (Told::owing(), None);
            for step in steps {
                match step {
                    Step::Pass(ms) => now += ms,
                    Step::Write(arrives) => {
                        told.handle_written(now);
                        match arrives {
                            Some(_) if lost_at.is_none() => has_got = true,
                            _ => lost_at = lost_at.or(Some(now)),
                        }
                    }
                    Step::Say(delay) => {
                        // Said before the path broke, it may come a little later.
                        if lost_at.is_none_or(|at| now - delay < at) {
                            told.handle_said(now);
                        }
                    }
                    Step::Break => {
                        last_active = told.active(now).unwrap_or(last_active);
                        told = if last_active == before { Told::owing() } else { Told::Settled };
                        lost_at = None;
                    }
                }
                if !has_got {
                    let active = told.active(now).unwrap_or(last_active);
                    prop_assert_eq!(active, before, "it would never be told");
                }
            }
        }
    }

    #[test]
    fn what_it_says_later_settles_it_once() {
        let mut told = Told::owing();
        assert!(!told.handle_said(100_000) && told.active(100_000).is_none(), "nothing was written");
        told.handle_written(200_000);
        told.handle_written(900_000);
        assert!(!told.handle_said(200_000 + LATER_MS - 1));
        assert!(told.handle_said(200_000 + LATER_MS) && !told.handle_said(900_000));
        assert_eq!(told.active(205_000), Some(205_000));
    }
}
