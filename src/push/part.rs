//! A part of a router's batch. A batch of many targets goes to the store part by part, so that nobody waits for all of it: each part is accepted by itself,
//! under the batch's id and its own number, and the router's answer is of all together.

/// Which part, and which targets.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct BatchPart {
    /// 0: the first one, or all.
    pub number: u32,
    /// The ordinal of its first target.
    pub first: u32,
    /// Each target's ordinal, ascending; empty: they follow the first one without a gap.
    pub listed: Box<[u32]>,
    /// Targets of the batch that come in later parts.
    pub to_come: u32,
    /// The part before was accepted just now, and not as a repeat: so this one can't have been accepted before.
    pub follows: bool,
}

impl BatchPart {
    /// The ordinal of a target, by its position in the part.
    pub fn ordinal(&self, position: usize) -> u32 {
        self.listed.get(position).copied().unwrap_or(self.first + position as u32)
    }
}
