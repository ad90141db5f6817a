//! A broker that is started for the measurement by the command that is given, and ended after it.

use std::process::Stdio;
use std::time::Duration;

use mooring::cli::output::Failure;
use mooring::client::Endpoint;
use tokio::process::{Child, Command};

/// Milliseconds within which it serves.
const READY_MS: u64 = 60_000;
/// Milliseconds between two looks whether it does.
const LOOK_MS: u64 = 20;

/// A child process; it is killed when this goes.
pub(crate) struct Server {
    command: String,
    child: Child,
}

impl Server {
    /// Starts it; see [`Self::ready`].
    pub(crate) fn start(command: &str) -> Result<Self, Failure> {
        // The shell gives way to the broker, so that the process is the broker's.
        let child = Command::new("sh")
            .args(["-c", &format!("exec {command}")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| Failure::failed(format!("sh: {e}")))?;
        Ok(Self { command: command.to_owned(), child })
    }

    pub(crate) fn pid(&self) -> Result<u32, Failure> {
        self.child.id().ok_or_else(|| Failure::failed(format!("`{}` has ended", self.command)))
    }

    /// Waits until somebody can connect.
    pub(crate) async fn ready(&mut self, endpoint: &Endpoint) -> Result<(), Failure> {
        for _ in 0..READY_MS / LOOK_MS {
            self.alive()?;
            if endpoint.connect().await.is_ok() {
                return self.alive();
            }
            tokio::time::sleep(Duration::from_millis(LOOK_MS)).await;
        }
        Err(Failure::failed(format!(
            "nobody answers at {} {} s after `{}` was started: --addr says where it listens",
            endpoint.address,
            READY_MS / 1_000,
            self.command
        )))
    }

    /// An error if it ended by itself. (Somebody else may listen at its address.)
    pub(crate) fn alive(&mut self) -> Result<(), Failure> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => Err(Failure::failed(format!(
                "`{}` ended ({status}); what it said is above. Does it stay in the foreground, and is its port free?",
                self.command
            ))),
            Err(error) => Err(Failure::failed(error)),
        }
    }

    /// SIGKILL, and waits until it is gone.
    pub(crate) async fn kill(&mut self) -> Result<(), Failure> {
        self.child.kill().await.map_err(Failure::failed)
    }

    /// The same command once more.
    pub(crate) fn start_again(&mut self) -> Result<(), Failure> {
        let again = Self::start(&self.command)?;
        *self = again;
        Ok(())
    }
}
