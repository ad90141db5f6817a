//! A device: its behaviour ([`Machine`]), its connection ([`Link`]), and the driver that keeps it connected ([`Device::run`]).
//!
//! One task a device and small buffers, so that thousands fit a process. What a device has seen and not had confirmed lives in
//! [`Device`], across sessions and calls of `run`; a real SDK would keep it in a file, which is what [`Handler::store`] is for.

mod driver;
mod ends;
mod installation;
mod link;
mod machine;
mod requests;
mod seen;

pub use driver::{Device, Handler, Leave, Reaction, Stopped};
pub use ends::{End, Next};
pub use installation::{Installation, InstallationError};
pub use link::{HELLO_SECONDS, Link, frame_name};
pub use machine::{Asked, Machine, Settings, Tally, UNCONFIRMED_EVENTS};
pub use requests::{Answered, REQUESTS, Request};
