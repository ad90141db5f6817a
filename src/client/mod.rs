//! The client side of both protocols: a device and a router, as libraries. The command line, the demo, the tests and the load
//! generator all use them, so that what is measured and shown is what a real peer would do.
//!
//! Each has a pure part that knows the protocol (`device::Machine`, `router::Ledger`) and takes the time as an argument, and a
//! driver that does the I/O. Every wait on the peer has a deadline.

pub mod admin;
pub mod backoff;
pub mod device;
mod frames;
#[cfg(feature = "grpc")]
mod grpc;
pub mod local;
pub mod net;
pub mod quic;
pub mod router;

pub use backoff::Backoff;
pub use net::{Endpoint, Transport, Way};

use crate::wire::frame::FrameError;

/// Why a connection failed or ended, seen from the client.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The address can't be resolved, or nobody answers there.
    #[error("can't connect to {address}: {source}")]
    Connect {
        /// As it was given.
        address: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// Reading or writing failed.
    #[error("the connection broke: {0}")]
    Io(#[from] std::io::Error),
    /// The edge closed the connection.
    #[error("the edge closed the connection")]
    Closed,
    /// Nothing came, or nothing could be written, for too long.
    #[error("no {what} within {seconds} s")]
    Deadline {
        /// What was waited for.
        what: &'static str,
        /// For how long.
        seconds: u64,
    },
    /// The edge sent bytes that are no frame.
    #[error("the edge sent a bad frame: {0}")]
    Frame(#[from] FrameError),
    /// The edge sent a frame that doesn't decode.
    #[error("the edge sent a frame that does not decode: {0}")]
    Decode(#[from] prost::DecodeError),
    /// The edge sent a frame that doesn't belong here.
    #[error("the edge sent {got} where {wanted} was expected")]
    Unexpected {
        /// What came.
        got: &'static str,
        /// What should have.
        wanted: &'static str,
    },
    /// The edge refused a device: see the code in `proto/device.proto`.
    #[error("the edge refused the device: {code:?}: {text}")]
    Refused {
        /// What the device does next follows from it.
        code: crate::wire::pb::device::ErrorCode,
        /// For a developer's log.
        text: String,
        /// With `RESOURCE_EXHAUSTED` and `UNAVAILABLE`.
        retry_after_milliseconds: u32,
    },
    /// The edge ended a router link: see the code in `proto/router.proto`.
    #[error("the edge ended the link: {code:?}: {text}")]
    Link {
        /// Why.
        code: crate::wire::pb::router::LinkErrorCode,
        /// For an operator's log.
        text: String,
    },
}
