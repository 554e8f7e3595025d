//! What a job must not see, reach or change.
//!
//! Attacks are made with Python's `ctypes` in the image `base`, so that no C library stands in between. Where it
//! does no harm the same attack is made outside as well: one that fails there too would prove nothing here.

mod agent;
mod kernel;
mod neighbours;
mod root;
mod sight;
