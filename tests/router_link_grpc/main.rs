//! The tests of the router link over gRPC, and what only gRPC has.
#![cfg(feature = "grpc")]

#[path = "../router_link/batches.rs"]
mod batches;
mod call;
mod calls;
mod carrier;
#[path = "../router_link/leaving.rs"]
mod leaving;
#[path = "../router_link/parts.rs"]
mod parts;
#[path = "../router_link/presence.rs"]
mod presence;
#[path = "../router_link/refused.rs"]
mod refused;
#[path = "../router_link/store.rs"]
mod store;
#[path = "../router_link/streams.rs"]
mod streams;
#[path = "../router_link/support.rs"]
mod support;
