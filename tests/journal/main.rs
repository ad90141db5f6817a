//! The journal, its checkpoints and the data directory's format file against power loss at every operation, against left-out syncs, and against
//! damage.

mod crash;
mod damage;
mod model;
mod reading;
mod space;
mod syncs;
mod tail;
