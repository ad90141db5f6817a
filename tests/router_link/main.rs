//! The router link over real loopback TLS sockets, in front of a store that the test controls.

mod batches;
mod leaving;
mod presence;
mod refused;
mod store;
mod streams;
mod support;
