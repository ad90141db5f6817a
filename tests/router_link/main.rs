//! The router link over real loopback TLS sockets, in front of a store that the test controls. `router_link_grpc` runs the same tests over
//! gRPC: a new file of tests stands in both.

mod batches;
mod carrier;
mod leaving;
mod parts;
mod presence;
mod refused;
mod store;
mod streams;
mod support;
