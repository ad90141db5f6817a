//! The command line: one file a subcommand.

pub mod keys;
pub mod serve;
