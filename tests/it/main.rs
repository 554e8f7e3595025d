//! The product from outside: the `mayfly` binary, real sandboxes, and what the host sees of them.
//!
//! `conformance` is what a job finds, the same on every tier; `isolation` is what it must not find; `bad_input`
//! is what people and scripts get wrong; `classes` is what an operator configures; `life` is what is left behind;
//! `nspawn`, `docker`, `vm` and `libvirt` what one tier or engine alone has; `selftest` is the command that attacks them;
//! `service` is hosts, brokers and producers; `layout` is the order of the
//! crates.
//!
//! Needs root. Images come from `MAYFLY_DATA_DIR`, or are built once below the target directory.

mod bad_input;
mod batch;
mod classes;
mod conformance;
mod docker;
mod edges;
mod egress;
mod gate;
mod gvisor;
mod harness;
mod interrupts;
mod isolation;
mod layout;
mod libvirt;
mod life;
mod nspawn;
mod selftest;
mod service;
mod vm;
