//! The whole edge over real sockets: a process of its own, devices and routers made of frames, and an event behind every wait.
//!
//! One binary, as linking costs more than running; a module a theme.

mod accounting;
mod at_rest;
mod backup;
mod bad_input;
mod bindings;
mod collapse;
mod command_line;
mod crash;
mod cuts;
mod delivery;
mod demo;
mod device;
mod disk;
mod edge;
mod endings;
mod fixture;
#[cfg(feature = "grpc")]
mod grpc;
#[cfg(feature = "grpc")]
#[path = "../router_link_grpc/call.rs"]
mod grpc_call;
mod isolation;
mod leaving;
mod operating;
mod order;
mod overload;
mod presence;
mod priority;
mod query;
mod quic;
mod quota;
mod reasons;
mod registration;
mod rejections;
mod relay;
mod restore;
mod revocation;
mod revoke;
mod rough;
mod router;
mod routers;
mod rows;
mod sessions;
mod stats;
mod strangers;
