//! Mistakes that an edge can be made to make in tests and in the simulation: the proof that the proof would find them. There are none in any
//! other build: there [`is`] is a constant.

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
