//! How a user, or whoever runs the program, asks it to end: Ctrl-C (SIGINT) or SIGTERM.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Both, from now on: neither ends the process by itself any more.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    pub(super) fn new() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Until the first one.
    pub(super) async fn first(mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
