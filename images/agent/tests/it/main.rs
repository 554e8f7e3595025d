//! The agent as its host sees it: the built binary, run bare (or first in a pid namespace) over a socket pair.
//!
//! Needs root, as the agent does: it must have privilege to give up.

mod arming;
mod endings;
mod first_process;
mod getting;
mod host;
mod protocol;
mod putting;
mod running;
mod streams;
mod tunnels;
