//! What is counted of messages.

/// Counts of one message, or of all.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Batches.
    pub batches: u64,
    /// Targets named.
    pub targets: u64,
    /// Refused by reason, indexed by `Refusal as usize - 1`.
    pub refused: [u64; 5],
    /// Accepted.
    pub accepted: u64,
    /// Arrived.
    pub arrived: u64,
    /// Failed by reason, indexed by `Failure as usize - 1`.
    pub failed: [u64; 11],
    /// Still pending.
    pub pending: u64,
    /// Receipts: distinct (message, device) written to a connection, as far as known.
    pub sent: u64,
    /// Receipts: clicks.
    pub clicked: u64,
    /// Receipts: cleans.
    pub cleaned: u64,
    /// Events after the end.
    pub late: u64,
}

impl Counts {
    /// Adds the counts of another message.
    pub fn add(&mut self, other: &Self) {
        self.batches += other.batches;
        self.targets += other.targets;
        self.accepted += other.accepted;
        self.arrived += other.arrived;
        self.pending += other.pending;
        self.sent += other.sent;
        self.clicked += other.clicked;
        self.cleaned += other.cleaned;
        self.late += other.late;
        for (sum, count) in self.refused.iter_mut().zip(&other.refused) {
            *sum += count;
        }
        for (sum, count) in self.failed.iter_mut().zip(&other.failed) {
            *sum += count;
        }
    }

    /// Whether `accepted = arrived + failed + pending`.
    pub fn identity_holds(&self) -> bool {
        self.accepted == self.arrived + self.failed.iter().sum::<u64>() + self.pending
            && self.targets == self.accepted + self.refused.iter().sum::<u64>()
    }
}
