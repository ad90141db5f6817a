//! Calls, and what serves them.

pub(crate) use mooring::router::serve_grpc as serve;

pub(crate) use super::call::{Stream, connect};
