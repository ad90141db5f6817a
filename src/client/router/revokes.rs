//! What a router wants taken back: each is asked for, and asked again on the next link, until it is answered. Taking back twice changes nothing.

use std::collections::BTreeMap;

use tokio::sync::{mpsc, oneshot};

use crate::wire::pb::router::{Revoke, Revoked};

/// A message to be taken back, and who waits for that.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) app_key: String,
    pub(super) message_id: u64,
    pub(super) reply: oneshot::Sender<Revoked>,
}

/// All that are not answered.
#[derive(Debug)]
pub(super) struct Revokes {
    pub(super) incoming: mpsc::Receiver<Asked>,
    /// By request id; `false`: not asked on this link. As many as callers wait, each for one.
    open: BTreeMap<u64, (Asked, bool)>,
    next: u64,
}

impl Revokes {
    pub(super) fn new(incoming: mpsc::Receiver<Asked>) -> Self {
        Self { incoming, open: BTreeMap::new(), next: 1 }
    }

    pub(super) fn ask(&mut self, asked: Asked) {
        self.open.insert(self.next, (asked, false));
        self.next += 1;
    }

    /// A link is open: everything is asked again.
    pub(super) fn handle_opened(&mut self) {
        for (_, sent) in self.open.values_mut() {
            *sent = false;
        }
    }

    pub(super) fn poll_send(&mut self) -> Option<Revoke> {
        let (request_id, (asked, sent)) = self.open.iter_mut().find(|(_, (_, sent))| !sent)?;
        *sent = true;
        Some(Revoke { request_id: *request_id, app_key: asked.app_key.clone(), message_id: asked.message_id })
    }

    pub(super) fn handle_revoked(&mut self, answer: Revoked) {
        if let Some((asked, _)) = self.open.remove(&answer.request_id) {
            // Whoever asked may have left.
            drop(asked.reply.send(answer));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_answered_is_asked_again_on_the_next_link() {
        let (_asking, incoming) = mpsc::channel(1);
        let mut revokes = Revokes::new(incoming);
        let (reply, mut answer) = oneshot::channel();
        revokes.ask(Asked { app_key: "demo".into(), message_id: 7, reply });
        let first = revokes.poll_send().expect("asked");
        assert_eq!((first.message_id, revokes.poll_send()), (7, None));
        revokes.handle_opened();
        let again = revokes.poll_send().expect("asked again");
        assert_eq!(again, first);
        revokes.handle_revoked(Revoked { request_id: 99, ..Revoked::default() });
        assert!(answer.try_recv().is_err());
        revokes.handle_revoked(Revoked { request_id: again.request_id, ended: 2, ..Revoked::default() });
        assert_eq!(answer.try_recv().map(|revoked| revoked.ended), Ok(2));
        revokes.handle_opened();
        assert_eq!(revokes.poll_send(), None);
    }
}
