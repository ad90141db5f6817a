//! The sections, each key with its default, its range and its unit in one place: what is written here is what is parsed and
//! what `Default` gives.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::reader::Section;
use super::value::within;
use super::{RouterRights, limits};
use crate::telemetry;

const MIB: u64 = 1024 * 1024;
const DAY_MS: u64 = 24 * 3600 * 1000;

macro_rules! sections {
    ($($(#[$meta:meta])* $name:ident {
        $($(#[$key_meta:meta])* $key:ident: $type:ty = $default:expr $(, $range:expr)?;)+
    } $(+ { $(#[$also_meta:meta])* $also:ident: $also_type:ty; })?)+) => {$(
        $(#[$meta])*
        #[derive(Clone, PartialEq, Eq, Debug)]
        pub struct $name {
            $($(#[$key_meta])* pub $key: $type,)+
            $($(#[$also_meta])* pub $also: $also_type,)?
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($key: $default,)+ $($also: Default::default(),)? }
            }
        }

        impl $name {
            pub(super) fn read(section: &mut Section<'_, '_>) -> Self {
                Self {
                    $($key: section.value(stringify!($key), $default, |_value: &$type| {
                        $(within(_value, &$range)?;)?
                        Ok(())
                    }),)+
                    $($also: Default::default(),)?
                }
            }
        }
    )+};
}

sections! {
    /// `[device]`: what devices connect to, and how patient the edge is with them.
    Device {
        /// TLS listener, or off.
        tls: Option<SocketAddr> = Some(SocketAddr::from(([0, 0, 0, 0], 7443)));
        /// QUIC, on the address of `tls`, UDP.
        quic: bool = true;
        /// A QUIC socket a shard, each datagram steered to its own; else one shard has all of QUIC.
        quic_steering: bool = true;
        /// Plain TCP listener, or off.
        plain: Option<SocketAddr> = None;
        /// The edge's certificate chain, PEM.
        certificate: PathBuf = "server.pem".into();
        /// Its key, PEM.
        key: PathBuf = "server.key".into();
        /// Heartbeat of a device that doesn't ask for one, seconds.
        heartbeat_default_s: u32 = 240, 1..=3_600;
        /// Shortest heartbeat that a device may ask for, seconds.
        heartbeat_min_s: u32 = 60, 1..=3_600;
        /// Longest, seconds.
        heartbeat_max_s: u32 = 600, 1..=3_600;
        /// The same over QUIC: of a device that doesn't ask for one, seconds.
        quic_heartbeat_default_s: u32 = 25, 1..=3_600;
        /// Shortest over QUIC, seconds.
        quic_heartbeat_min_s: u32 = 15, 1..=3_600;
        /// Longest over QUIC, seconds.
        quic_heartbeat_max_s: u32 = 120, 1..=3_600;
        /// From accept to Hello, TLS included, milliseconds.
        hello_deadline_ms: u64 = 10_000, 100..=60_000;
        /// From writing a push until it leaves the window unacknowledged, milliseconds.
        ack_deadline_ms: u64 = 30_000, 100..=600_000;
        /// From writing a push until its device is told to routers as suspect if nothing was read since, milliseconds.
        suspect_after_ms: u64 = 10_000, 100..=600_000;
        /// How long a push of retention 0 has to arrive, milliseconds.
        online_window_ms: u64 = 10_000, 100..=60_000;
        /// How long an outbox may stand still before its session is closed, milliseconds.
        stall_deadline_ms: u64 = 30_000, 100..=600_000;
        /// Sessions of this process.
        max_sessions: usize = 2_000_000, 1..=20_000_000;
        /// Of these over TCP and TLS; no more than descriptors allow, which those over QUIC don't need.
        max_tcp_sessions: usize = 20_000_000, 1..=20_000_000;
        /// Handshakes in flight on each shard; beyond, who waited longest at the most crowded address leaves, or accepting pauses.
        max_handshakes: usize = 1_024, 1..=65_536;
        /// Bytes of frames that are begun and not ended, on each shard; beyond, the session whose frame is oldest ends.
        max_begun_bytes: usize = 64 * MIB as usize, 128 * 1024..=1_024 * MIB as usize * 64;
        /// From the beginning of a frame to its end, milliseconds.
        frame_deadline_ms: u64 = 30_000, 100..=600_000;
        /// Connections on each shard that are over and may take their last frames; beyond, the oldest closes at once.
        max_closing: usize = 4_096, 1..=1_048_576;
        /// Bytes that may wait unsent in the kernel for one device, or unacknowledged by it over QUIC.
        send_buffer_bytes: usize = 16_384, 4_096..=16_777_216;
        /// How long what was sent may stay unacknowledged, milliseconds: `TCP_USER_TIMEOUT`, and over QUIC how long nothing may come meanwhile.
        user_timeout_ms: u32 = 30_000, 1_000..=600_000;
    }

    /// `[router]`: what routers connect to.
    Router {
        /// Listener, mutual TLS.
        listen: SocketAddr = SocketAddr::from(([127, 0, 0, 1], 7400));
        /// Listener of the same service over gRPC, or off. A build without the feature `grpc` has it off.
        grpc: Option<SocketAddr> = cfg!(feature = "grpc").then_some(SocketAddr::from(([127, 0, 0, 1], 7401)));
        /// The edge's certificate chain for routers, PEM.
        certificate: PathBuf = "server.pem".into();
        /// Its key, PEM.
        key: PathBuf = "server.key".into();
        /// The CA that signs routers' certificates, PEM.
        client_ca: PathBuf = "ca.pem".into();
        /// Targets in flight on one link, unanswered.
        credit_targets: u64 = limits::CREDIT_TARGETS, limits::BATCH_TARGETS as u64..=100_000_000;
        /// Bytes of batches in flight on one link, unanswered.
        credit_bytes: u64 = limits::CREDIT_BYTES, limits::ROUTER_FRAME_BYTES as u64..=4_096 * MIB;
        /// Targets of a batch that the store takes in one piece.
        part_targets: usize = limits::PART_TARGETS, 1..=limits::BATCH_TARGETS;
        /// `TCP_USER_TIMEOUT`: how long the kernel waits for an acknowledgement of what it sent, milliseconds.
        user_timeout_ms: u32 = 30_000, 1_000..=600_000;
        /// How far a router's clock may be ahead of the edge's, milliseconds.
        max_clock_skew_ms: u64 = 300_000, 0..=3_600_000;
    } + {
        /// Who may connect, by the common name of their certificate.
        routers: Vec<RouterRights>;
    }

    /// `[admin]`: metrics, health, troubleshooting.
    Admin {
        /// Listener, plain HTTP: keep it on an inner network.
        listen: SocketAddr = SocketAddr::from(([127, 0, 0, 1], 7480));
    }

    /// `[store]`: the journal and what is kept in memory.
    Store {
        /// Bytes of a journal segment.
        segment_bytes: u32 = 64 * MIB as u32, 4 * MIB as u32..=1_024 * MIB as u32;
        /// Segments preallocated as reserve: acks and ends go on when the disk is full.
        reserve_segments: u32 = 2, 1..=64;
        /// Bytes of all files together, at most; 0: what the disk has.
        max_bytes: u64 = 0;
        /// From one sync of the journal to the next where messages come quicker than syncs, microseconds.
        sync_spacing_us: u64 = 300, 0..=10_000;
        /// Bytes of journal between two checkpoints of the index.
        checkpoint_bytes: u64 = 256 * MIB, MIB..=64 * 1_024 * MIB;
        /// How long batch ids are remembered, seconds.
        batch_window_s: u64 = 86_400, 60..=259_200;
        /// Batch ids remembered, at most.
        max_batch_ids: usize = 10_000_000, 1_000..=1_000_000_000;
        /// Entries pending of one device, at most.
        max_pending_per_device: u32 = 1_000, 1..=100_000;
        /// Entries pending in all, at most: those of the largest batch, which would be refused for ever otherwise.
        max_pending: u64 = 100_000_000, limits::BATCH_TARGETS as u64..=10_000_000_000;
        /// Push records in all, at most.
        max_messages: u64 = 1_000_000, 1_000..=1_000_000_000;
        /// How long a push record is kept after its acceptance, days.
        message_kept_days: u32 = 14, 1..=90;
        /// Bytes of push records in memory; the others are in the tables.
        message_cache_bytes: u64 = 256 * MIB, MIB..=1_024 * 1_024 * MIB;
        /// Bytes of devices' rows in memory, about; the others are in the tables.
        device_cache_bytes: u64 = 512 * MIB, 4 * 1_024..=1_024 * 1_024 * MIB;
        /// Bytes of the tables' pages in memory.
        table_cache_bytes: u64 = 64 * MIB, MIB..=1_024 * 1_024 * MIB;
        /// Devices known, at most.
        max_devices: u64 = 20_000_000, 1..=1_000_000_000;
        /// Messages taken back that are remembered, at most.
        max_recalls: u64 = 10_000, 1..=1_000_000;
        /// Seconds unseen after which a device is forgotten; 0: never.
        forget_after_s: u64 = 90 * 86_400, 0..=315_360_000;
        /// Bytes of recent bodies kept in memory.
        body_cache_bytes: u64 = 256 * MIB, MIB..=1_024 * 1_024 * MIB;
        /// Bytes of journal that one unread stream may pin before its apps' batches are refused.
        stream_soft_bytes: u64 = 4_096 * MIB, MIB..=1_024 * 1_024 * MIB;
        /// Bytes of journal that one unread stream may pin before its oldest events go.
        stream_hard_bytes: u64 = 8_192 * MIB, MIB..=1_024 * 1_024 * MIB;
    }

    /// `[memory]`: one budget over everything that the process holds.
    Memory {
        /// Bytes of memory that the process may use, about; 0: three quarters of the machine's, or of what its cgroup may use.
        budget_bytes: u64 = 0;
    }

    /// `[stats]`: daily statistics.
    Stats {
        /// A day begins at midnight so many minutes east of UTC.
        utc_offset_minutes: i32 = 480, -720..=840;
    }

    /// `[leave]`: SIGTERM.
    Leave {
        /// Not ready, but still accepting, while balancers notice, milliseconds.
        drain_lead_ms: u64 = 1_000, 0..=DAY_MS;
        /// GOAWAY is spread over this time, milliseconds.
        window_ms: u64 = 5_000, 0..=DAY_MS;
        /// The process has exited by then, milliseconds from the signal.
        deadline_ms: u64 = 30_000, 100..=DAY_MS;
    }

    /// `[log]`.
    Log {
        /// `human` or `json`.
        format: telemetry::Format = telemetry::Format::Human;
        /// A level, or a list of `target=level`.
        filter: String = "info".into();
    }
}
