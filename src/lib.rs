//! Mooring: the long-connection edge server of a self-built mobile push channel.

pub mod admin;
pub mod cli;
pub mod client;
pub mod clock;
pub mod config;
pub mod credential;
pub mod directory;
pub mod error;
pub mod ids;
pub mod limits;
pub mod machine;
pub mod pki;
pub mod push;
pub mod router;
pub mod server;
pub mod shard;
pub mod store;
pub mod telemetry;
pub mod wire;
