//! What goes in and out, counted on the shard's own and told at the end of each turn: the metrics are all shards', and to add to one that another
//! core has just added to costs as much as some hundred instructions.

use std::sync::atomic::Ordering;

use super::state::Shard;
use crate::telemetry::{self, Counter, Direction};

/// Since the last turn.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    /// Pushes written.
    pub deliveries: u64,
    pub frames_in: u64,
    pub bytes_in: u64,
    pub frames_out: u64,
    pub bytes_out: u64,
}

impl Shard {
    /// Tells what was counted. Between two turns there are ten seconds at most, in which nothing happened.
    pub(super) fn tell_traffic(&mut self) {
        let traffic = std::mem::take(&mut self.traffic);
        let tell = |counter, by| {
            if by > 0 {
                telemetry::add(counter, by);
            }
        };
        tell(Counter::Deliveries(self.id), traffic.deliveries);
        tell(Counter::DeviceFrames(Direction::In), traffic.frames_in);
        tell(Counter::DeviceBytes(Direction::In), traffic.bytes_in);
        tell(Counter::DeviceFrames(Direction::Out), traffic.frames_out);
        tell(Counter::DeviceBytes(Direction::Out), traffic.bytes_out);
        self.context.figures(self.id).deliveries.fetch_add(traffic.deliveries, Ordering::Relaxed);
    }
}
