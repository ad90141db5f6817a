//! What a read of a stream hands over, as it is found.

use crate::ids::Seq;
use crate::push::{ReceiptRef, StreamEvent};

/// An event of a stream as a read finds it.
#[derive(Debug)]
pub enum Found<'a> {
    /// A receipt, its parts where the journal has them.
    Receipt(ReceiptRef<'a>),
    /// Any event.
    Event(StreamEvent),
}

impl Found<'_> {
    /// The event on its own. `None`: the names of its receipt are none.
    pub fn into_event(self) -> Option<StreamEvent> {
        match self {
            Self::Receipt(receipt) => Some(StreamEvent::Receipt(Box::new(receipt.to_receipt()?))),
            Self::Event(event) => Some(event),
        }
    }
}

/// Takes what a read of a stream finds.
pub trait EventSink {
    /// One more, in journal order.
    fn event(&mut self, seq: Seq, event: Found<'_>);
    /// The read begins again: what it found so far doesn't count.
    fn again(&mut self);
}

impl EventSink for Vec<(Seq, StreamEvent)> {
    fn event(&mut self, seq: Seq, event: Found<'_>) {
        self.extend(event.into_event().map(|event| (seq, event)));
    }

    fn again(&mut self) {
        self.clear();
    }
}
