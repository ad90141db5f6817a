//! Mooring: the long-connection edge server of a self-built mobile push channel.
//!
//! # The ring
//! Data flows one way round; a part knows the next one, never the one before it.
//!
//! 1. [`router`]: links to the routers upstream. A batch is admitted (every check that needs no state) and submitted.
//! 2. [`store`]: one sequence in a journal. A batch is decided, written, synced; only then accepted, visible and handed over.
//! 3. [`shard::Handover`] with [`directory`]: the devices of a committed batch that are connected, one hand-over a shard.
//! 4. [`shard`]: threads that own sessions. A session is a cursor that drains its device's pending list ([`machine::session`]).
//! 5. Acks go to the store: an outcome is its receipt, one record. Streams of them go to the routers.
//!
//! There is one path: a connected device is one whose list is drained at once, an offline one is drained later.
//!
//! # The rooms, and which way imports point
//! `ids, limits, push, binding, error ← wire ← machine ← directory, store, presence ← account, shard, router ← server ← cli`. [`shard`] and
//! [`router`] never import each other; [`machine`] imports nothing that waits; protobuf stops at [`wire`] (the client library speaks it).
//! [`budget`] has what all of them hold in memory.
//! [`clock`] is the only caller of the system's clocks, [`telemetry`] has the closed list of metrics, [`limits`] every bound.
//!
//! # Promises
//! Accepted means kept (durable first); at least once with a stable id, and the device hands an id to its app once; in order of acceptance on
//! each session; nothing late; every accepted target has one reported end, and `accepted = arrived + failed + pending` holds as of every
//! sequence; no receipt, confirmation or figure is visible before the records it rests on are durable; slow peers hurt themselves only;
//! overload is refused at the door; one session a device, the newest; leaving is graceful.

pub mod account;
pub mod admin;
pub mod apps;
pub mod binding;
pub mod budget;
pub mod cli;
pub mod client;
pub mod clock;
pub mod config;
pub mod credential;
pub mod directory;
pub mod error;
pub mod fault;
pub mod ids;
pub mod limits;
pub mod machine;
#[cfg(test)]
mod models;
pub mod pki;
pub mod presence;
pub mod push;
pub mod router;
pub mod server;
pub mod shard;
#[cfg(feature = "sim")]
pub mod sim;
pub mod store;
pub(crate) mod sync;
pub mod telemetry;
pub mod token;
pub mod wire;
