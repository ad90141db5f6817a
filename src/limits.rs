//! Every bound that is not configuration, with its unit. Nothing in this program grows without one of these or a configured maximum.

/// Bytes of an app key.
pub const APP_KEY_BYTES: usize = 32;
/// Bytes of a device id.
pub const DEVICE_ID_BYTES: usize = 64;
/// Bytes of a batch id.
pub const BATCH_ID_BYTES: usize = 64;
/// Bytes of a job key, and of a collapse key.
pub const LABEL_BYTES: usize = 64;
/// Bytes of one string among a device's attributes.
pub const ATTRIBUTE_BYTES: usize = 256;
/// Bytes of all attributes of a device, encoded.
pub const ATTRIBUTES_BYTES: usize = 2_048;
/// Bytes of an account, an alias, a tag or a phone number.
pub const BINDING_BYTES: usize = 128;
/// Aliases of one device.
pub const ALIASES: usize = 128;
/// Tags of one device.
pub const TAGS: usize = 128;
/// Requests of one session (attributes, switch, bind, unbind) that wait for the journal; beyond, the session is not read.
pub const SESSION_REQUESTS: usize = 8;
/// Bytes of a credential.
pub const CREDENTIAL_BYTES: usize = 64;
/// Bytes of the token that a device registers with.
pub const REGISTER_TOKEN_BYTES: usize = 4_096;
/// Devices whose credentials were revoked one by one, in all. Beyond, raise the app's epoch.
pub const REVOKED_DEVICES: u64 = 1_000_000;

/// Bytes of one frame between device and edge, without its length prefix.
pub const DEVICE_FRAME_BYTES: usize = 65_536;
/// Bytes of title, body and extras of a push together.
pub const PUSH_TEXT_BYTES: usize = 4_000;
/// Bytes of a push as the edge encodes it: the text and what stands around it (URLs, activity, channel).
pub const PUSH_ENCODED_BYTES: usize = 8_192;
/// Bytes of one frame between router and edge, without its five-byte head.
pub const ROUTER_FRAME_BYTES: usize = 16 * 1024 * 1024;
/// Targets of one batch.
pub const BATCH_TARGETS: usize = 100_000;
/// Parts of the index, each with a lock and a share of what is remembered.
pub const INDEX_PARTS: usize = 256;

/// Batch ids that have to be remembered where the largest batch is taken in parts of so many targets: their ids stand in one part of the index, and
/// an answer with as many refused targets as can be stands for 800.
pub const fn least_batch_ids(part_targets: usize) -> usize {
    (BATCH_TARGETS.div_ceil(part_targets) + 800) * INDEX_PARTS
}

/// Targets that the store takes in one piece, if the configuration doesn't say: a fraction of a millisecond of its thread's time. A larger batch comes in parts.
pub const PART_TARGETS: usize = 1_000;
/// Messages that a new one drives out of its device's list, at most, where an app drops the oldest and the list is far beyond its quota; more only if these
/// have fewer bytes than the new one.
pub const DISPLACED: usize = 16;
/// Ids in `Hello.received`.
pub const HELLO_RECEIVED: usize = 256;
/// Events in one Ack.
pub const ACK_EVENTS: usize = 256;
/// Pushes in flight on one session.
pub const WINDOW: usize = 32;
/// Entries that left the window unacknowledged and are still watched on one session.
pub const OVERDUE: usize = 64;
/// Acks of one session that wait for their confirmation; beyond, the session is not read.
pub const UNCONFIRMED_ACKS: u64 = 64;
/// Acks of one session that are durable and for whose confirmation nothing was written yet: it goes along with the next frame, whatever that is.
pub const UNTOLD_ACKS: u64 = 8;
/// Bytes waiting in one session's outbox before it stops draining its list. One frame may go over.
pub const OUTBOX_BYTES: usize = 64 * 1024;

/// Bytes that a QUIC device may send before they are read.
pub const QUIC_RECEIVE_BYTES: u32 = 64 * 1024;
/// QUIC connections that wait to be taken in, on each shard; beyond, their first datagrams are passed by, and come again.
pub const QUIC_INCOMING: usize = 1_024;
/// Bytes of further datagrams kept for one of them.
pub const QUIC_INCOMING_BYTES: u64 = 4 * 1024;

/// Longest retention, milliseconds from acceptance: 72 hours.
pub const RETENTION_MS: u64 = 72 * 3600 * 1000;

/// Deliveries of one turn of a shard.
pub const TURN_DELIVERIES: usize = 256;
/// Microseconds of fan-out in one turn of a shard.
pub const TURN_FANOUT_MICROS: u64 = 1_000;
/// TLS handshake steps of one turn, about 150 µs each.
pub const TURN_HANDSHAKE_STEPS: usize = 8;
/// Acks of one command of a shard to the store; when so many wait, the shard reads nothing.
pub const TURN_ACKS: usize = 4_096;
/// Looks at sessions and at what they may have, for messages that were taken back, of one turn of a shard.
pub const TURN_RECALLS: usize = 512;
/// Hand-overs (sessions named) waiting in one shard's mailbox; beyond, the shard looks at all its sessions instead.
pub const MAILBOX_SLOTS: usize = 1_000_000;
/// Bytes of memory of the process before anybody connects, at least what it takes: code, threads, certificates, metrics, empty maps.
pub const BASE_BYTES: u64 = 24 * 1024 * 1024;
/// Bytes of memory that each shard takes beside that: its timers, its buffers, its thread.
pub const SHARD_BYTES: u64 = 4 * 1024 * 1024;
/// Shards of one process.
pub const SHARDS: usize = 256;

/// Devices whose last change of presence is kept for followers, about 232 bytes each; beyond, whoever is behind gets a new snapshot.
pub const PRESENCE_CHANGES: usize = 262_144;
/// Marks of presence of one shard between two times of gathering, once a second; beyond, followers get a new snapshot.
pub const PRESENCE_MARKS: usize = 65_536;

/// Commands waiting for the journal.
pub const STORE_COMMANDS: usize = 65_536;
/// Bytes of commands waiting for the journal.
pub const STORE_COMMAND_BYTES: usize = 256 * 1024 * 1024;
/// Bytes of one commit group; a single larger batch is a group of its own.
pub const GROUP_BYTES: usize = 4 * 1024 * 1024;
/// Milliseconds for which reads of a batch's record may fail before it is taken for damaged, and what is pending of it ends.
pub const UNREADABLE_MS: u64 = 60_000;
/// Body reads waiting for the reader thread.
pub const BODY_READS: usize = 65_536;

/// Targets in flight on one router link: the credit.
pub const CREDIT_TARGETS: u64 = 1_000_000;
/// Bytes of batches in flight on one router link: the credit.
pub const CREDIT_BYTES: u64 = 64 * 1024 * 1024;
/// Starts of a data directory of which cursors are known. A router that comes with an older one opens where the edge believes it to be.
pub const HISTORIES: usize = 1_000;
/// Stream batches on their way to one reader, unacknowledged.
pub const STREAM_WINDOW: usize = 16;
/// Events in one stream batch.
pub const STREAM_BATCH_EVENTS: usize = 4_096;
/// Bytes of one stream batch, about.
pub const STREAM_BATCH_BYTES: usize = 1024 * 1024;
/// Connections to a router listener that are no router's yet; beyond, the oldest of the address that has the most is closed.
pub const ROUTER_HANDSHAKES: usize = 64;
/// Lines a second about router links that were never opened: of strangers, and of routers.
pub const ROUTER_FAILURE_LINES: u32 = 5;
/// Router links at a time.
pub const ROUTER_LINKS: usize = 64;
/// Calls at a time on one gRPC connection, those of health and reflection included.
pub const GRPC_CALLS: u32 = 16;
/// Bytes of one gRPC call that may come before they are read.
pub const GRPC_CALL_WINDOW_BYTES: u32 = 1024 * 1024;
/// Bytes of all calls of one gRPC connection that may come before they are read.
pub const GRPC_CONNECTION_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
/// Bytes of one gRPC call that are no longer in its outbox, but wait for the router to make room: twice, in the pipe and in HTTP/2.
pub const GRPC_PIPE_BYTES: usize = 64 * 1024;
/// Bytes of the head of a gRPC call.
pub const GRPC_HEAD_BYTES: u32 = 16 * 1024;
/// Milliseconds between two HTTP/2 pings of the edge.
pub const GRPC_PING_MS: u64 = 30_000;
/// Milliseconds until a ping has to be answered.
pub const GRPC_PONG_MS: u64 = 20_000;
/// Milliseconds without a frame after which a router link is closed.
pub const ROUTER_SILENCE_MS: u64 = 90_000;
/// Bytes of a frame from a router that is no `DeliverBatch`: the largest is a query for 10,000 devices.
pub const ROUTER_CONTROL_BYTES: usize = 1024 * 1024;
/// Devices in one query over a router link.
pub const QUERY_DEVICES: usize = 10_000;
/// Devices of one query of which attributes are told as well: a row that isn't in memory takes about 4 µs of the store's thread.
pub const QUERY_ROWS: usize = 64;
/// Queries in flight on one router link; beyond, the link is not read.
pub const LINK_QUERIES: usize = 8;
/// Batches in flight on one router link, whatever the credit; beyond, the link is not read.
pub const LINK_BATCHES: usize = 16_384;
/// Bytes that wait to be written on one router link. One frame may go over.
pub const LINK_OUTBOX_BYTES: usize = 4 * 1024 * 1024;
/// The same, at least, where the budget of memory is small.
pub const LEAST_LINK_OUTBOX_BYTES: usize = 64 * 1024;
/// Frames that wait to be written on one router link.
pub const LINK_OUTBOX_FRAMES: usize = 1_024;
/// Bytes of the body of a request to the admin port.
pub const ADMIN_BODY_BYTES: usize = 64 * 1024;
/// Streams in one Open.
pub const LINK_STREAMS: usize = 64;
