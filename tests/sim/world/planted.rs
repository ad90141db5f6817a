//! Mistakes that are planted, and how many seeds it takes until one is found.

use mooring::fault::Fault;

use super::{Options, run};

/// Each must be found.
pub(crate) const PLANTED: [Fault; 40] = [
    Fault::TellBeforeCommit,
    Fault::EndUnsaid,
    Fault::ForgetPending,
    Fault::DropOnFullOutbox,
    Fault::AckCumulatively,
    Fault::RemoveAnySession,
    Fault::TrimPastCursor,
    Fault::OrderByPlace,
    Fault::ForgetBatchIds,
    Fault::ForgetCopies,
    Fault::IgnoreFloors,
    Fault::IgnoreApplied,
    Fault::ForgetChanged,
    Fault::DropHeld,
    Fault::ForgetChangedRows,
    Fault::SkipRows,
    Fault::LoseBindings,
    Fault::ForgetRecalls,
    Fault::KeepUnbound,
    Fault::WriteExpired,
    Fault::ConfirmOnRead,
    Fault::ForgetHandover,
    Fault::RepeatOnlineOnly,
    Fault::LetOlderIn,
    Fault::SkipEvent,
    Fault::StreamUntold,
    Fault::PullUncommitted,
    Fault::ReadUnchecked,
    Fault::DamageUnsaid,
    Fault::ServeRevoked,
    Fault::ForgetRevocations,
    Fault::WelcomeEarly,
    Fault::ForgetConnected,
    Fault::KeepForgotten,
    Fault::GiveUpAtOnce,
    Fault::PresenceUnsaid,
    Fault::GoodbyeUnsaid,
    Fault::ExpireLate,
    Fault::ActivityUnsaid,
    Fault::OneKeyForParts,
];

/// Tries the mistake with so many seeds from `from` on: how many it took, and what was found.
pub(crate) fn find(mistake: Fault, from: u64, within: u64) -> Option<(u64, String)> {
    (from..from + within).find_map(|seed| {
        let options = Options { planted: Some(mistake), ..Options::of(seed) };
        run(options).err().map(|violation| (seed - from + 1, violation.what))
    })
}
