//! A peer's end of a connection: bytes go out in pieces, when the network lets them, and come in with the time when the edge wrote them.

use std::collections::VecDeque;

use mooring::sim::{Pipe, Stamp};
use rand::Rng;
use rand::rngs::SmallRng;

use super::chance::once_in;

pub(crate) struct Link {
    pub(crate) pipe: Pipe,
    out: VecDeque<u8>,
    input: Vec<u8>,
    /// Up to which byte of all was written when.
    times: VecDeque<(u64, Stamp)>,
    arrived: u64,
    handled: u64,
}

impl Link {
    pub(crate) fn new(pipe: Pipe) -> Self {
        Self { pipe, out: VecDeque::new(), input: Vec::new(), times: VecDeque::new(), arrived: 0, handled: 0 }
    }

    pub(crate) fn queue(&mut self, bytes: &[u8]) {
        self.out.extend(bytes);
    }

    /// Some of what was said arrives: frames are split wherever it pleases the network.
    pub(crate) fn flush(&mut self, rng: &mut SmallRng, is_calm: bool) {
        if self.out.is_empty() || !is_calm && once_in(rng, 4) {
            return;
        }
        let all = self.out.len();
        let count = if is_calm || rng.random_ratio(3, 4) { all } else { rng.random_range(1..=all) };
        let bytes: Vec<u8> = self.out.drain(..count).collect();
        self.pipe.send(&bytes);
    }

    /// Takes in at most so many bytes.
    pub(crate) fn fill(&mut self, most: usize) {
        for (bytes, at) in self.pipe.take(most) {
            self.arrived += bytes.len() as u64;
            self.input.extend(bytes);
            self.times.push_back((self.arrived, at));
        }
    }

    /// The next whole frame, if `find` sees one, and when the edge wrote its last byte.
    pub(crate) fn next<E>(
        &mut self,
        find: impl Fn(&[u8]) -> Result<Option<(usize, usize)>, E>,
    ) -> Result<Option<(Vec<u8>, Stamp)>, E> {
        let Some((head, body)) = find(&self.input)? else { return Ok(None) };
        let rest = self.input.split_off(head + body);
        let mut frame = std::mem::replace(&mut self.input, rest);
        self.handled += (head + body) as u64;
        let mut at = Stamp::default();
        while let Some(&(end, time)) = self.times.front() {
            at = time;
            if end > self.handled {
                break;
            }
            self.times.pop_front();
            if end == self.handled {
                break;
            }
        }
        frame.drain(..head);
        Ok(Some((frame, at)))
    }
}
