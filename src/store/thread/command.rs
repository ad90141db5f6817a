//! What a command takes while it waits, and whether somebody waits for it.

use crate::binding::Change;
use crate::limits;
use crate::store::{Command, Query};

/// Bytes that a command holds, about.
pub(super) fn weight(command: &Command) -> usize {
    const FIXED: usize = 128;
    FIXED
        + match command {
            Command::Deliver { batch, .. } => {
                batch.body.len() + batch.targets.len() * 16 + batch.accounts.len() * 8 + FIXED
            }
            Command::Seen { device, .. } => device.attributes.len() + FIXED,
            Command::Change { change, .. } => match &**change {
                Change::Attributes { attributes, .. } => attributes.len(),
                Change::Push(_) | Change::Moved(_) | Change::Bind(_) | Change::Unbind(_) => {
                    limits::BINDING_BYTES
                }
            },
            Command::Acks { acks, .. } => acks.iter().map(|ack| FIXED + ack.events.len() * 48).sum::<usize>(),
            Command::Sent(sent) => sent.len() * 32,
            Command::LastActive(active) => active.len() * 24,
            Command::Query { query: Query::Devices(keys), .. } => keys.len() * 16,
            Command::StreamAck { .. }
            | Command::Revoke { .. }
            | Command::Query { .. }
            | Command::ControlApp { .. }
            | Command::RetireStream { .. }
            | Command::RevokeCredentials { .. }
            | Command::Flush { .. } => 0,
        }
}

/// Bytes that a batch takes in the index beside its body, about, and each of its targets.
const BATCH_TO_COME: usize = 1_024;
const TARGET_TO_COME: usize = 40;

/// Bytes that a command will take in the index: counted as long as it waits, so that what is let in at one moment is not too much at the next.
pub(super) fn to_come(command: &Command) -> usize {
    match command {
        Command::Deliver { batch, .. } => BATCH_TO_COME + batch.targets.len() * TARGET_TO_COME,
        _ => 0,
    }
}

/// Whether somebody waits for the command's sync. Acks, receipts and cursors gather for a moment, or ride along with a batch: half the syncs.
pub(super) fn is_urgent(command: &Command) -> bool {
    match command {
        Command::Deliver { .. }
        | Command::Seen { .. }
        | Command::Revoke { .. }
        | Command::Change { .. }
        | Command::Query { .. }
        | Command::ControlApp { .. }
        | Command::RetireStream { .. }
        | Command::RevokeCredentials { .. }
        | Command::Flush { .. } => true,
        Command::Acks { .. } | Command::Sent(_) | Command::LastActive(_) | Command::StreamAck { .. } => false,
    }
}
