//! An edge that a simulation drives: everything but threads, runtimes, sockets and the system's clocks is the edge's own code. The simulation itself
//! (peers, faults, what must hold) is in `tests/sim/`. Only builds with the feature `sim` have this.

mod edge;
mod near;
mod pipe;
mod sink;
mod timers;
mod woken;

pub use crate::clock::SimTime;
pub use crate::router::sim::SimLink;
pub use crate::shard::local::{Accepted, LocalShard};
pub use crate::shard::sim::{LiveSession, SimShard};
#[cfg(test)]
pub(crate) use edge::Wired;
pub use edge::{Edge, Plan, SECRET, START};
pub(crate) use near::Near;
pub use pipe::{Pipe, Stamp};
pub use sink::Sink;
pub(crate) use woken::Woken;
