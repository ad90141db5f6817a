//! The pure machines: events and the time go in, decisions come out. No tokio, no clock, no files.

pub mod begun;
pub mod bucket;
pub mod door;
pub mod fanout;
pub mod rate;
pub mod session;
pub mod told;
pub mod wheel;
