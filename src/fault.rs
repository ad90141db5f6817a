//! Mistakes that an edge can be made to make in tests and in the simulation: the proof that the proof would find them. There are none in any
//! other build: there the question whether to make one is a constant.

/// A mistake.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// Answers and confirms before the commit.
    TellBeforeCommit,
    /// Removes old segments without copying what is live in them.
    ForgetCopies,
    /// Orders lists by where the records are, not by acceptance.
    OrderByPlace,
    /// Applies every record that is replayed to every part, also to those that reflect it.
    IgnoreFloors,
    /// Applies every record that is replayed to the tables, also to those that reflect it.
    IgnoreApplied,
    /// Lets changed push records leave memory before they are written.
    ForgetChanged,
    /// Lets changed rows of devices leave memory before they are written.
    ForgetChangedRows,
    /// Applies no record that is replayed to rows of devices.
    SkipRows,
    /// Takes a device whose Hello brought its row into memory for bound to nothing.
    LoseBindings,
    /// Names checkpoints before the tables hold what they reflect: the one mistake that breaks nothing, as the journal has it.
    NameEarly,
    /// Drops entries of a checkpoint whose batch is younger than its home's slice.
    DropHeld,
    /// Forgets at a start which messages were taken back.
    ForgetRecalls,
    /// Leaves what was resolved from an account in the list when that account goes.
    KeepUnbound,
    /// Ends entries, and writes no record of it.
    EndUnsaid,
    /// Begins a session without a look at what is pending.
    ForgetPending,
    /// Passes over what finds the outbox full.
    DropOnFullOutbox,
    /// Takes an ack for everything that was accepted before, too.
    AckCumulatively,
    /// Takes a device out of the directory, whoever's session it is.
    RemoveAnySession,
    /// Removes old segments that a stream's reader has not acknowledged.
    TrimPastCursor,
    /// Forgets at a start which batch ids were used.
    ForgetBatchIds,
    /// Writes what has expired in the outbox.
    WriteExpired,
    /// Confirms acks as they are read.
    ConfirmOnRead,
    /// Tells connected devices of nothing new.
    ForgetHandover,
    /// Shows a message of retention 0 to the next session too.
    RepeatOnlineOnly,
    /// Lets an older session take the place of a newer one.
    LetOlderIn,
    /// Takes a record for whole without a look at its checksum.
    ReadUnchecked,
    /// Passes over damage and doesn't say so.
    DamageUnsaid,
    /// Goes on with a session whose credential was revoked.
    ServeRevoked,
    /// Forgets at a start whose credentials were revoked.
    ForgetRevocations,
    /// Welcomes a new device before its registration is durable.
    WelcomeEarly,
    /// Forgets devices that are connected, too.
    ForgetConnected,
    /// Replays no record of a device that was forgotten.
    KeepForgotten,
    /// Tells nobody that a device has connected.
    PresenceUnsaid,
    /// Tells nobody that a device has gone.
    GoodbyeUnsaid,
    /// Ends what has expired seconds later.
    ExpireLate,
    /// Sessions report no activity while they last.
    ActivityUnsaid,
    /// Takes a record that can't be read once for damaged.
    GiveUpAtOnce,
    /// Tells no stream of a link that the journal's head has moved.
    StreamUntold,
    /// Leaves out an event where a read of a stream stops.
    SkipEvent,
    /// Shows what is in the index before it is durable.
    PullUncommitted,
    /// Looks at what is pending before it enters the directory, and not again if that was nothing.
    LookBeforeEntering,
    /// Wakes a shard before the mail is in its box.
    RingBeforePut,
    /// Lets go of the store's queue between the look into it and the sleep.
    LookThenSleep,
    /// Wakes the store's thread, and doesn't keep for one that is about to sleep that it was woken.
    ForgetWake,
    /// Keeps a body that was read for a batch that has ended meanwhile.
    KeepEndedBody,
    /// Hands a batch over before sessions may see it.
    HandOverEarly,
    /// Answers before the newest sequence is shown.
    AnswerBeforeHead,
    /// Takes the parts of a batch for one.
    OneKeyForParts,
}

#[cfg(any(test, feature = "sim"))]
thread_local! {
    static FAULT: std::cell::Cell<Option<Fault>> = const { std::cell::Cell::new(None) };
}

/// The edge of this thread makes this mistake from now on.
#[cfg(any(test, feature = "sim"))]
pub fn make(fault: Option<Fault>) {
    FAULT.set(fault);
}

/// Whether the mistake is to be made.
#[cfg(any(test, feature = "sim"))]
pub(crate) fn is(fault: Fault) -> bool {
    FAULT.get() == Some(fault)
}

/// There are no mistakes.
#[cfg(not(any(test, feature = "sim")))]
pub(crate) const fn is(_: Fault) -> bool {
    false
}
