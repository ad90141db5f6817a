//! What happened, as lines: a digest of all, and the last ones for whoever looks for a failure's cause.

use std::collections::VecDeque;
use std::fmt;

/// Lines that are kept.
const KEPT: usize = 400;

pub(crate) struct Trace {
    hash: blake3::Hasher,
    last: VecDeque<String>,
    prints: bool,
}

impl Trace {
    pub(crate) fn new(prints: bool) -> Self {
        Self { hash: blake3::Hasher::new(), last: VecDeque::new(), prints }
    }

    pub(crate) fn note(&mut self, at: u64, what: fmt::Arguments<'_>) {
        let line = format!("{:>9}.{:03} {what}", at / 1_000, at % 1_000);
        self.hash.update(line.as_bytes()).update(b"\n");
        if self.prints {
            println!("{line}");
        }
        if self.last.len() == KEPT {
            self.last.pop_front();
        }
        self.last.push_back(line);
    }

    pub(crate) fn digest(&self) -> String {
        self.hash.finalize().to_hex()[..32].to_owned()
    }

    pub(crate) fn last(&self) -> impl Iterator<Item = &str> {
        self.last.iter().map(String::as_str)
    }
}
