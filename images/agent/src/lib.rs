//! The wire protocol between the host and the agent, the first process of every sandbox.
//!
//! Both ends compile the same frames from here. The library makes no syscall and knows no tier, no pool and
//! no job schema; the binary beside it (`main.rs`) is the agent itself.
//!
//! - [`codec`]: bytes to frames and back, without input or output of its own.
//! - [`message`]: what the frames say, one enum for each direction.
//! - [`layout`]: what every sandbox's root has beside the image.
//! - [`flow`]: credit, so that a flood stops at the sandbox and not in the host's memory.

pub mod codec;
pub mod flow;
pub mod layout;
pub mod message;
