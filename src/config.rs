//! Configuration: documented defaults, parsed once into valid types.
