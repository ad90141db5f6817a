//! A connection in memory at its least: what comes in is kept until it is read, of what goes out the bytes are counted. For benches, which measure
//! the edge and not what carries its bytes: an allocation of 64 bytes, no lock.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::task::Poll;

/// One connection. Clones are handles of the same one: the edge has one, its peer another. Both are on one thread.
#[derive(Clone, Debug, Default)]
pub struct Sink(Rc<RefCell<Inside>>);

#[derive(Debug, Default)]
struct Inside {
    /// Sent by the peer, not read yet. Shared, as many devices may say the same.
    frame: Option<Rc<[u8]>>,
    /// Bytes that the edge wrote.
    written: u64,
}

impl Sink {
    // The edge's end.

    pub(crate) fn poll_read(&self, into: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut inside = self.0.borrow_mut();
        let Some(frame) = inside.frame.take() else { return Poll::Pending };
        let Some(room) = into.get_mut(..frame.len()) else {
            return Poll::Ready(Err(io::ErrorKind::OutOfMemory.into()));
        };
        room.copy_from_slice(&frame);
        Poll::Ready(Ok(frame.len()))
    }

    pub(crate) fn write(&self, bytes: &[u8]) -> usize {
        self.0.borrow_mut().written += bytes.len() as u64;
        bytes.len()
    }

    pub(crate) fn has_unread(&self) -> bool {
        self.0.borrow().frame.is_some()
    }

    // The peer's end.

    /// Bytes arrive at the edge: as many as one read takes. Those before were read. The shard has to be told.
    pub fn send(&self, bytes: &Rc<[u8]>) {
        let mut inside = self.0.borrow_mut();
        let before = inside.frame.replace(bytes.clone());
        debug_assert!(before.is_none(), "what came before was read");
    }

    /// Bytes that the edge wrote since this was asked last.
    pub fn take_written(&self) -> u64 {
        std::mem::take(&mut self.0.borrow_mut().written)
    }

    /// Whether the edge has read everything.
    pub fn is_read(&self) -> bool {
        self.0.borrow().frame.is_none()
    }
}
