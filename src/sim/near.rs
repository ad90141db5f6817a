//! The edge's end of a simulated connection, whichever kind it is.

use std::io;
use std::task::{Context, Poll, Waker};

use super::{Pipe, Sink};

/// See the module.
#[derive(Debug)]
pub(crate) enum Near {
    /// With a network between it and its peer, and whom to wake when more can be read or written.
    Pipe(Pipe, Waker),
    /// With nothing between.
    Sink(Sink),
}

impl Near {
    pub(crate) fn read(&self, into: &mut [u8]) -> Poll<io::Result<usize>> {
        match self {
            Self::Pipe(pipe, waker) => pipe.poll_read(&mut Context::from_waker(waker), into),
            Self::Sink(sink) => sink.poll_read(into),
        }
    }

    pub(crate) fn write(&self, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            Self::Pipe(pipe, waker) => pipe.poll_write(&mut Context::from_waker(waker), bytes),
            Self::Sink(sink) => Poll::Ready(Ok(sink.write(bytes))),
        }
    }

    pub(crate) fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Pipe(pipe, _) => pipe.try_write(bytes),
            Self::Sink(sink) => Ok(sink.write(bytes)),
        }
    }

    pub(crate) fn shut(&self) {
        if let Self::Pipe(pipe, _) = self {
            pipe.shut();
        }
    }

    pub(crate) fn is_ended(&self) -> bool {
        match self {
            Self::Pipe(pipe, _) => pipe.is_ended(),
            // Its peer stays as long as the edge.
            Self::Sink(_) => false,
        }
    }

    pub(crate) fn has_unread(&self) -> bool {
        match self {
            Self::Pipe(pipe, _) => pipe.has_unread(),
            Self::Sink(sink) => sink.has_unread(),
        }
    }
}
