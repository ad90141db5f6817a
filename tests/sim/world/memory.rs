//! Memory that runs short for a while, so that the edge has to refuse; and whether what the edge counts is what it holds.

use std::sync::Arc;

use mooring::budget::{Budget, Held, Part};
use mooring::sim::Edge;
use rand::Rng;
use rand::rngs::SmallRng;

use super::chance::once_in;
use super::oracle::ensure;

/// Bytes: far more than an edge takes here.
const BUDGET: usize = 1 << 30;

/// See the module.
pub(crate) struct Memory {
    budget: Arc<Budget>,
    /// What others have of it.
    others: Held,
}

impl Memory {
    pub(crate) fn new() -> Self {
        let budget = Arc::new(Budget::new(BUDGET));
        Self { others: budget.hold(Part::Base), budget }
    }

    pub(crate) fn budget(&self) -> Arc<Budget> {
        self.budget.clone()
    }

    /// Now and then others take so much that caches give way, that batches and new devices are refused, or sessions too; and give it back. What
    /// percentage they have now, if that has changed.
    pub(crate) fn press(&mut self, rng: &mut SmallRng) -> Option<usize> {
        let percent = if self.others.bytes() > 0 {
            once_in(rng, 10).then_some(0)
        } else {
            once_in(rng, 120).then(|| [65, 80, 95][rng.random_range(0..3)])
        };
        percent.inspect(|percent| self.others.set(BUDGET / 100 * percent))
    }

    /// There is room again.
    pub(crate) fn relax(&mut self) {
        self.others.set(0);
    }

    /// An edge that is gone has given back everything; one that is there counts its outboxes as they are.
    pub(crate) fn check(&self, edge: Option<&mut Edge>) -> Result<(), String> {
        let Some(edge) = edge else {
            let left = self.budget.used() - self.others.bytes();
            let part = Part::ALL.iter().find(|part| self.budget.part(**part) > 0);
            ensure!(left == 0, "{left} bytes are counted of an edge that is gone: {part:?}");
            return Ok(());
        };
        for shard in edge.shards() {
            let (counted, held) = shard.outbox_bytes();
            ensure!(counted == held, "{counted} bytes are counted, outboxes hold {held}");
        }
        Ok(())
    }
}
