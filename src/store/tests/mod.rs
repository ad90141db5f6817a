//! The store's engine against what was promised: command by command, on its threads, and crashed everywhere.

mod at_rest;
mod basics;
mod bindings;
mod bounds;
mod damage;
mod delivery;
mod embedded;
mod ends;
mod fixture;
mod forgetting;
mod full;
mod history;
mod memory;
mod model;
mod model_devices;
mod plan;
mod read_errors;
mod receipts;
mod restore;
mod revoke;
mod rows;
mod stream_damage;
mod streams;
mod streams_model;
mod support;
mod tables;
