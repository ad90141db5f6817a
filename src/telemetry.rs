//! The closed list of metrics.
