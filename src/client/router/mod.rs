//! A router: the link ([`open`]), what it knows of its batches and their outcomes ([`Ledger`]), and the driver that keeps the link
//! up, repeats what was not answered, and acknowledges streams ([`Router`]).
//!
//! The ledger lives in memory. A production router stores events durably before it acknowledges them; [`Router::start`] takes a
//! function or a [`Keeper`] for that, called before each `StreamAck`.

mod driver;
mod ledger;
mod link;
mod presence;
mod query;
mod revokes;
mod session;
mod tally;

pub use driver::{Keeper, OnEvents, Options, Progress, Router, Stop};
pub use ledger::{Fate, Ledger, Rejection};
pub use link::{Receiver, Sender, frame_name, open};
pub use presence::{PresenceMap, PresenceNews, PresenceOptions, follow_presence};
pub use query::{AskError, Asker};
pub use tally::Tally;
