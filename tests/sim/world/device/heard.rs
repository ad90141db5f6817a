//! What a device hears, held against what was promised.

use mooring::sim::Stamp;
use mooring::wire::pb::device as pb;

use super::super::oracle::{Oracle, ensure};
use super::Device;

impl Device {
    /// What a frame promises, or breaks.
    pub(super) fn note(
        &mut self,
        frame: &pb::to_device::Frame,
        written: Stamp,
        oracle: &mut Oracle,
        trace: &mut dyn FnMut(String),
    ) -> Result<(), String> {
        self.check_identity(frame, written, oracle)?;
        let Some(session) = &mut self.session else { return Ok(()) };
        let id = &self.id;
        match frame {
            pb::to_device::Frame::Push(push) => {
                let message = push.message_id;
                let again = if push.redelivered { " again" } else { "" };
                trace(format!("{id} gets {message}{again} on session {}", session.number));
                let (at, expires_at) = (written.edge, push.expires_milliseconds);
                ensure!(
                    at < expires_at,
                    "{id}: {message} was written at {at}, and had expired at {expires_at}"
                );
                let is_whole = oracle
                    .bodies
                    .get(&message)
                    .is_some_and(|(title, body)| *title == push.title && *body == push.body);
                ensure!(is_whole, "{id}: {message} came with a body that nobody sent: {push:?}");
                if session.got.insert(message) {
                    let is_high = push.priority() == pb::Priority::High;
                    session.seen.firsts.push((message, is_high));
                }
                if oracle.is_damaged() {
                    return Ok(());
                }
                let Some((batch, sent, ordinal)) = oracle.only_batch(id, message) else { return Ok(()) };
                let account = &sent.accounts[ordinal];
                ensure!(
                    account.is_empty() || self.asked > 0 || *account == self.account || oracle.is_restored,
                    "{id}: {message} is for {account:?}, and {:?} is logged in",
                    self.account
                );
                let accepted_at = oracle.answers.get(batch).map_or(u64::MAX, |answer| answer.sequence);
                ensure!(
                    self.lost.is_none_or(|lost| accepted_at > lost),
                    "{id}: {message} is older (at {accepted_at}) than the reinstallation (after {:?})",
                    self.lost
                );
                // What it has acknowledged may come once more: it has it.
                let has_it = oracle.said.contains(&(id.clone(), message));
                if let Some((revoked_at, told)) = oracle.revoked.get(&message).filter(|_| !has_it) {
                    // What is on its way to the connection's task may pass it; no more.
                    let is_late = written.step > told + super::super::MAIL_STEPS;
                    // Also one whose answer has not come yet.
                    let again = accepted_at > *revoked_at;
                    let remembers = oracle.is_remembered(message, *revoked_at, written.edge);
                    ensure!(
                        !is_late || again && !remembers,
                        "{id}: {message} was taken back at {revoked_at}, told so at step {told}, and written at {written:?}"
                    );
                }
                if sent.online_only {
                    let sessions = oracle.online.entry((id.clone(), message)).or_default();
                    sessions.insert(session.number);
                    ensure!(
                        sessions.len() <= 1,
                        "{id}: {message} has retention 0, and came on sessions {sessions:?}"
                    );
                }
            }
            pb::to_device::Frame::AckConfirm(confirm) => {
                trace(format!("{id} is confirmed {} on session {}", confirm.number, session.number));
                let newest = session.newest_ack;
                ensure!(confirm.number <= newest, "{id}: Ack {} confirmed, {newest} sent", confirm.number);
                let left = session.acks.split_off(&(confirm.number + 1));
                for (message, event) in std::mem::replace(&mut session.acks, left).into_values().flatten() {
                    let kind = match pb::EventType::try_from(event) {
                        Ok(pb::EventType::Arrive) => 3,
                        Ok(pb::EventType::Click) => 4,
                        _ => 5,
                    };
                    oracle.confirmed.insert((id.clone(), message, kind));
                }
            }
            pb::to_device::Frame::Welcome(_) => trace(format!("{id} is welcome, session {}", session.number)),
            pb::to_device::Frame::Error(error) => {
                trace(format!("{id} is told {:?}: {}", error.code(), error.text));
            }
            pb::to_device::Frame::GoAway(away) => trace(format!("{id} is told {:?}", away.reason())),
            pb::to_device::Frame::Revoke(revoke) => {
                trace(format!("{id} is told to forget {}", revoke.message_id));
            }
            _ => {}
        }
        Ok(())
    }
}
