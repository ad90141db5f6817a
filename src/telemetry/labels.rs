//! The closed label sets. A label is never a device, an account or anything else that a peer chooses.

use std::borrow::Cow;

use crate::ids::ShardId;
use crate::limits;
use crate::push::{Failure, ReceiptKind, Refusal};

/// A label whose values are known when the program is built.
pub trait Label: Copy {
    /// How many values there are.
    const COUNT: usize;
    /// Whether every series exists from the start, at zero, so that a rate over the first event can be seen. Not so for
    /// shards, of which most processes have few.
    const EAGER: bool = true;
    /// The value's position, less than `COUNT`.
    fn position(self) -> usize;
    /// The text of the value at a position.
    fn text(position: usize) -> Cow<'static, str>;
}

macro_rules! labels {
    ($($(#[$meta:meta])* $name:ident { $($(#[$variant_meta:meta])* $variant:ident = $text:literal,)+ })+) => {$(
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub enum $name { $($(#[$variant_meta])* $variant,)+ }

        impl $name {
            /// All values.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The value's text.
            pub fn label(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }

        impl Label for $name {
            const COUNT: usize = Self::ALL.len();
            fn position(self) -> usize {
                self as usize
            }
            fn text(position: usize) -> Cow<'static, str> {
                Self::ALL.get(position).map_or("", |value| value.label()).into()
            }
        }
    )+};
}

labels! {
    /// What carries a device's session.
    Transport {
        /// Plain TCP.
        Tcp = "tcp",
        /// TCP with TLS 1.3.
        Tls = "tls",
        /// QUIC.
        Quic = "quic",
    }
    /// Seen from the edge.
    Direction {
        /// From the peer.
        In = "in",
        /// To the peer.
        Out = "out",
    }
    /// How a device's handshake ended: TLS, Hello and the check of its credential together.
    HandshakeResult {
        /// Welcome was sent.
        Ok = "ok",
        /// TLS failed.
        Tls = "tls",
        /// Silence, or too slow.
        Deadline = "deadline",
        /// No Hello yet, and its place was needed for another.
        Evicted = "evicted",
        /// Bytes that are no frame.
        Malformed = "malformed",
        /// A frame over the limit.
        FrameTooLarge = "frame_too_large",
        /// The first frame wasn't Hello.
        HelloExpected = "hello_expected",
        /// Unknown app, wrong or revoked credential, package not of the app.
        Unauthenticated = "unauthenticated",
        /// A maximum was reached.
        Exhausted = "exhausted",
        /// Over TCP or TLS: so many sessions as the edge has descriptors for (`device.max_tcp_sessions`, `LimitNOFILE`).
        Descriptors = "descriptors",
        /// The store takes nothing now, or the edge is leaving.
        Unavailable = "unavailable",
        /// The device went away.
        Closed = "closed",
        /// The app doesn't register here.
        RegistrationClosed = "registration_closed",
        /// It asked for what this edge doesn't do.
        Unimplemented = "unimplemented",
    }
    /// What became of a registration.
    RegistrationResult {
        /// The device got its id and a credential.
        Ok = "ok",
        /// No token, or a wrong one; a foreign package; a device that is locked out.
        Unauthenticated = "unauthenticated",
        /// The app takes none here.
        Closed = "closed",
        /// Over the app's rate.
        Exhausted = "exhausted",
    }
    /// Why a session ended.
    SessionEnd {
        /// By the device.
        Closed = "closed",
        /// By a newer session of the device.
        Replaced = "replaced",
        /// Nothing was read for longer than the heartbeat allows.
        Silent = "silent",
        /// The socket failed.
        Error = "error",
        /// Bytes that are no frame.
        Malformed = "malformed",
        /// A frame over the limit.
        FrameTooLarge = "frame_too_large",
        /// The edge leaves.
        Leaving = "leaving",
        /// The device didn't read its outbox.
        Stalled = "stalled",
        /// A frame was begun and not ended in time.
        Unfinished = "unfinished",
        /// A frame was begun and not ended, and its room was needed.
        Crowded = "crowded",
        /// Over QUIC: what was sent was not answered for too long.
        Unreachable = "unreachable",
        /// Its device's credentials were revoked.
        Revoked = "revoked",
    }
    /// What a router link runs on.
    RouterTransport {
        /// Frames straight on TLS.
        Tcp = "tcp",
        /// A gRPC call.
        Grpc = "grpc",
    }
    /// Why a router link ended.
    RouterLinkEnd {
        /// By the router.
        Closed = "closed",
        /// The TLS handshake failed.
        Tls = "tls",
        /// Too slow, or silent.
        Deadline = "deadline",
        /// Bytes that are no frame.
        Malformed = "malformed",
        /// A frame over the limit.
        FrameTooLarge = "frame_too_large",
        /// Open came not first, or twice.
        OpenExpected = "open_expected",
        /// Its certificate does not allow what it asked for.
        Unauthorized = "unauthorized",
        /// No stream of that name.
        UnknownStream = "unknown_stream",
        /// A version that is not spoken here.
        Version = "version",
        /// A cursor that can't be.
        Cursor = "cursor",
        /// The edge's own fault.
        Internal = "internal",
        /// It showed no certificate, and its place was needed for another.
        Evicted = "evicted",
        /// As many links as may be were open.
        Exhausted = "exhausted",
        /// The router didn't read.
        Stalled = "stalled",
        /// The socket failed.
        Error = "error",
        /// The edge leaves.
        Leaving = "leaving",
    }
    /// Which bound of an app was reached.
    AppLimit {
        /// Batches a second.
        Batches = "batches",
        /// Targets a second.
        Targets = "targets",
        /// New sessions a second.
        Sessions = "sessions",
        /// Sessions at a time.
        MaxSessions = "max_sessions",
    }
    /// What memory is used for.
    MemoryPart {
        /// The program itself, its threads, and what each shard has from the start.
        Base = "base",
        /// Connections of devices, with TLS or QUIC, and what their sessions have in flight.
        Sessions = "sessions",
        /// Frames that devices have begun and not ended.
        BegunFrames = "begun_frames",
        /// What waits to be written to devices.
        Outboxes = "outboxes",
        /// Room for large frames of routers that are read and examined: kept from the start.
        Admission = "admission",
        /// Buffers of router links, and what waits to be written on them: answers, streams, presence.
        Links = "links",
        /// Commands that wait for the store, with what they will take in the index, and rows on their way to the tables.
        StoreWork = "store_work",
        /// Known devices, pending entries, live batches, batch ids.
        Index = "index",
        /// Push records in memory.
        PushRecords = "push_records",
        /// Rows of devices in memory.
        DeviceRows = "device_rows",
        /// Recent messages.
        Bodies = "bodies",
        /// Pages of the tables.
        Tables = "tables",
        /// Changes of presence.
        Presence = "presence",
    }
    /// What was refused because memory is used up.
    MemoryRefusal {
        /// Batches.
        Batches = "batches",
        /// Devices that weren't known.
        Devices = "devices",
        /// New sessions.
        Sessions = "sessions",
    }
    /// What a batch was answered.
    BatchResult {
        /// Taken.
        Accepted = "accepted",
        /// Had been taken before.
        Repeated = "repeated",
        /// A field is wrong.
        Invalid = "invalid",
        /// Not an app of this edge, or not of this router.
        UnknownApp = "unknown_app",
        /// Its time had passed.
        Expired = "expired",
        /// Text over the limit.
        PayloadTooLarge = "payload_too_large",
        /// None.
        NoTargets = "no_targets",
        /// Over the limit.
        TooManyTargets = "too_many_targets",
        /// The batch id was used with other content.
        BatchConflict = "batch_conflict",
        /// The message id was used with another body.
        MessageConflict = "message_conflict",
        /// Created before batch ids are remembered.
        TooOld = "too_old",
        /// Credit, a queue or a maximum is used up.
        ResourceExhausted = "resource_exhausted",
        /// The disk is full, or the edge is leaving.
        Unavailable = "unavailable",
        /// The app takes no new pushes.
        AppSuspended = "app_suspended",
        /// It asks for what this edge doesn't do.
        Unimplemented = "unimplemented",
    }
    /// What a target was answered.
    TargetResult {
        /// Taken.
        Accepted = "accepted",
        /// Never seen here.
        DeviceUnknown = "device_unknown",
        /// The push switch is off.
        PushDisabled = "push_disabled",
        /// Not connected, under the offline policy `return`.
        Offline = "offline",
        /// The device has its maximum pending.
        OverQuota = "over_quota",
        /// Still pending, or twice in the batch.
        Duplicate = "duplicate",
    }
    /// How an accepted target ended.
    Outcome {
        /// Acknowledged by the device.
        Arrived = "arrived",
        /// Its time passed.
        Expired = "expired",
        /// Retention 0: was not connected.
        Offline = "offline",
        /// Retention 0: connected, but no arrive in time.
        Unacknowledged = "unacknowledged",
        /// The app drops the oldest.
        OverQuota = "over_quota",
        /// Taken back.
        Revoked = "revoked",
        /// By a newer message with its collapse key.
        Replaced = "replaced",
        /// Switched off after acceptance.
        PushDisabled = "push_disabled",
        /// The device was unseen for too long.
        Forgotten = "forgotten",
        /// Its account is bound no more.
        Unbound = "unbound",
        /// The app was reinstalled.
        Reinstalled = "reinstalled",
        /// Its record was found damaged.
        Storage = "storage",
    }
    /// What a receipt says.
    Receipt {
        /// Written, not acknowledged in time.
        Sent = "sent",
        /// Ended without arriving.
        SentFail = "sent_fail",
        /// Acknowledged.
        Arrive = "arrive",
        /// Tapped.
        Click = "click",
        /// Dismissed.
        Clean = "clean",
    }
}

impl From<Refusal> for TargetResult {
    fn from(refusal: Refusal) -> Self {
        Self::ALL[refusal as usize]
    }
}

impl From<Failure> for Outcome {
    fn from(failure: Failure) -> Self {
        Self::ALL[failure as usize]
    }
}

impl From<ReceiptKind> for Receipt {
    fn from(kind: ReceiptKind) -> Self {
        Self::ALL[kind as usize - 1]
    }
}

impl Label for ShardId {
    const COUNT: usize = limits::SHARDS;
    const EAGER: bool = false;
    fn position(self) -> usize {
        usize::from(self.0)
    }
    fn text(position: usize) -> Cow<'static, str> {
        position.to_string().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_are_those_of_the_domain() {
        for refusal in Refusal::ALL {
            assert_eq!(TargetResult::from(refusal).label(), refusal.label());
        }
        for failure in Failure::ALL {
            assert_eq!(Outcome::from(failure).label(), failure.label());
        }
        assert_eq!(Receipt::from(ReceiptKind::Sent), Receipt::Sent);
        assert_eq!(Receipt::from(ReceiptKind::Clean), Receipt::Clean);
        assert_eq!(TargetResult::COUNT, 1 + Refusal::ALL.len());
        assert_eq!(Outcome::COUNT, 1 + Failure::ALL.len());
    }
}
