//! Files in and out of the sandbox, for the host and with the job's rights.
//!
//! The job may have laid any trap here. So no symbolic link is ever followed, nothing but a regular file is read or
//! written, and nothing that the kernel makes up (`/proc`, `/sys`) is touched at all: it would show the agent's view.

pub(crate) mod get;
pub(crate) mod glob;
pub(crate) mod place;
pub(crate) mod put;
pub(crate) mod walk;
