//! The list itself: every counter and gauge with its name, label and help. Names have base units; counters end in `_total`.

use super::labels::{
    AppLimit, BatchResult, Direction, HandshakeResult, Label, MemoryPart, MemoryRefusal, Outcome, Receipt,
    RegistrationResult, RouterLinkEnd, RouterTransport, SessionEnd, TargetResult, Transport,
};
use crate::ids::ShardId;

/// A family of series as it is registered.
pub(super) struct Family {
    pub(super) name: &'static str,
    pub(super) help: &'static str,
    pub(super) label: Option<LabelSet>,
}

/// The values of a family's label.
pub(super) struct LabelSet {
    pub(super) key: &'static str,
    pub(super) count: usize,
    pub(super) eager: bool,
    pub(super) text: fn(usize) -> std::borrow::Cow<'static, str>,
}

macro_rules! families {
    ($(#[$meta:meta])* $list:ident { $(#[doc = $help:literal] $variant:ident $(($label:ident: $set:ty))? = $name:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum $list { $(#[doc = $help] $variant $(($set))?,)+ }

        impl $list {
            pub(super) const FAMILIES: &'static [Family] = &[$(Family {
                name: $name,
                help: $help,
                label: families!(@set $($label: $set)?),
            }),+];

            /// Which family, and which of its series.
            pub(super) fn place(self) -> (usize, usize) {
                #[derive(Clone, Copy)]
                enum Position { $($variant,)+ }
                match self {
                    $(Self::$variant $(($label))? => (
                        Position::$variant as usize,
                        0 $(+ Label::position($label))?,
                    ),)+
                }
            }
        }
    };
    (@set) => { None };
    (@set $label:ident: $set:ty) => {
        Some(LabelSet {
            key: stringify!($label),
            count: <$set as Label>::COUNT,
            eager: <$set as Label>::EAGER,
            text: <$set as Label>::text,
        })
    };
}

families! {
    /// What only grows.
    Counter {
        #[doc = "Device connections accepted."]
        Connections(transport: Transport) = "mooring_connections_total",
        #[doc = "Device handshakes that ended, by result."]
        Handshakes(result: HandshakeResult) = "mooring_handshakes_total",
        #[doc = "Registrations of devices, by result."]
        Registrations(result: RegistrationResult) = "mooring_registrations_total",
        #[doc = "Sessions that ended, by reason."]
        SessionEnds(reason: SessionEnd) = "mooring_session_ends_total",
        #[doc = "Frames exchanged with devices."]
        DeviceFrames(direction: Direction) = "mooring_device_frames_total",
        #[doc = "Bytes exchanged with devices, inside TLS."]
        DeviceBytes(direction: Direction) = "mooring_device_bytes_total",
        #[doc = "Frames exchanged with routers."]
        RouterFrames(direction: Direction) = "mooring_router_frames_total",
        #[doc = "Bytes exchanged with routers, inside TLS."]
        RouterBytes(direction: Direction) = "mooring_router_bytes_total",
        #[doc = "Router connections that ended before Opened: TLS, certificate, name or first frame."]
        RouterHandshakeFailures = "mooring_router_handshake_failures_total",
        #[doc = "Router links that were opened."]
        RouterLinksOpened(transport: RouterTransport) = "mooring_router_links_opened_total",
        #[doc = "Router links that ended, by reason; also those that never opened."]
        RouterLinkEnds(reason: RouterLinkEnd) = "mooring_router_link_ends_total",
        #[doc = "Batches answered, by answer."]
        Batches(result: BatchResult) = "mooring_batches_total",
        #[doc = "Targets of batches answered, by answer; repeats not counted again."]
        Targets(result: TargetResult) = "mooring_targets_total",
        #[doc = "Accepted targets that ended, by outcome."]
        Outcomes(outcome: Outcome) = "mooring_outcomes_total",
        #[doc = "Receipts made durable, by event."]
        Receipts(event: Receipt) = "mooring_receipts_total",
        #[doc = "Events that came after their target's end; they change no outcome."]
        Late = "mooring_late_total",
        #[doc = "Events that match no push record; they are in no sum."]
        Unmatched = "mooring_unmatched_total",
        #[doc = "Commit groups made durable."]
        Commits = "mooring_commits_total",
        #[doc = "Bytes of commit groups made durable."]
        CommitBytes = "mooring_commit_bytes_total",
        #[doc = "Bodies read back from the journal."]
        BodiesRead = "mooring_bodies_read_total",
        #[doc = "Rows of devices read from the tables, as they were not in memory."]
        DeviceRowReads = "mooring_device_row_reads_total",
        #[doc = "Times that a shard's mailbox was full and the shard looked at all its sessions instead."]
        MailboxOverflows = "mooring_mailbox_overflows_total",
        #[doc = "Changes of presence gathered for routers that follow it."]
        PresenceChanges = "mooring_presence_changes_total",
        #[doc = "Snapshots of presence begun."]
        PresenceSnapshots = "mooring_presence_snapshots_total",
        #[doc = "Journal records and rows of devices found damaged."]
        DamagedRecords = "mooring_damaged_records_total",
        #[doc = "Batches and sessions refused because a bound of their app was reached, by bound."]
        AppLimited(limit: AppLimit) = "mooring_app_limited_total",
        #[doc = "Batches, new devices and new sessions refused because memory is used up."]
        MemoryRefused(what: MemoryRefusal) = "mooring_memory_refused_total",
        #[doc = "Events dropped because a stream was at its hard bound; its reader gets a gap in their place."]
        GapEvents = "mooring_receipt_gap_events_total",
        #[doc = "Pushes written to devices, by shard."]
        Deliveries(shard: ShardId) = "mooring_deliveries_total",
    }
}

families! {
    /// What goes up and down.
    Gauge {
        #[doc = "Authenticated device sessions."]
        Sessions(transport: Transport) = "mooring_sessions",
        #[doc = "Authenticated device sessions of each shard."]
        ShardSessions(shard: ShardId) = "mooring_shard_sessions",
        #[doc = "Device connections that have not said Hello successfully yet."]
        HandshakesInFlight = "mooring_handshakes_in_flight",
        #[doc = "Device connections that are over and may still take their last frames."]
        Closing = "mooring_closing_connections",
        #[doc = "Accepted targets that have not ended."]
        Pending = "mooring_pending",
        #[doc = "Devices known."]
        Devices = "mooring_devices",
        #[doc = "Devices whose row is in memory, and not in the tables only."]
        DeviceRows = "mooring_device_rows",
        #[doc = "Messages with a push record."]
        Messages = "mooring_messages",
        #[doc = "Bytes of memory in use, by what for, about."]
        Memory(part: MemoryPart) = "mooring_memory_bytes",
        #[doc = "Bytes of memory that all parts together may use."]
        MemoryBudget = "mooring_memory_budget_bytes",
        #[doc = "Bytes of memory that the kernel counts for this process."]
        MemoryResident = "mooring_memory_resident_bytes",
        #[doc = "0: there is room; 1: caches give way; 2: batches and new devices are refused; 3: new sessions too."]
        MemoryState = "mooring_memory_state",
        #[doc = "Sessions whose outbox is not empty."]
        Outboxes = "mooring_outboxes",
        #[doc = "Commands waiting for the journal."]
        StoreQueueCommands = "mooring_store_queue_commands",
        #[doc = "Bytes of the journal's segments."]
        JournalBytes = "mooring_journal_bytes",
        #[doc = "Bytes of the journal that something still needs."]
        JournalLiveBytes = "mooring_journal_live_bytes",
        #[doc = "1 while batches can be stored, 0 while only the reserve is left."]
        StoreRoom = "mooring_store_room",
        #[doc = "Router links open."]
        RouterLinks(transport: RouterTransport) = "mooring_router_links",
        #[doc = "Router links that follow presence."]
        PresenceFollowers = "mooring_presence_followers",
        #[doc = "QUIC endpoints: one a shard, or 1 where the kernel can't steer datagrams to their shards."]
        QuicEndpoints = "mooring_quic_endpoints",
        #[doc = "Shards."]
        Shards = "mooring_shards",
        #[doc = "Longest turn of each shard since the last scrape."]
        LongestTurn(shard: ShardId) = "mooring_longest_turn_seconds",
    }
}
