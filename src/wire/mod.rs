//! Pure codecs: bytes to frames to domain types, and back. Nothing here waits, and protobuf stops here.

pub mod attributes;
mod bindings;
pub mod device;
pub mod frame;
pub mod router;

/// The generated messages of `proto/`. The client library speaks them; inside the edge they stop at this module.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]
pub mod pb {
    pub mod mooring {
        pub mod device {
            pub mod v1 {
                include!(concat!(env!("OUT_DIR"), "/mooring.device.v1.rs"));
            }
        }
        pub mod router {
            pub mod v1 {
                include!(concat!(env!("OUT_DIR"), "/mooring.router.v1.rs"));
            }
        }
    }
    pub use mooring::device::v1 as device;
    pub use mooring::router::v1 as router;
}
