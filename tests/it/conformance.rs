//! What a job finds, and what is found of it: the same on every tier.
//!
//! A behaviour is a function over a [`Place`](crate::harness::Place); `on_every_tier!` makes one test of it for
//! each tier. Nothing in here may know how a tier works.

mod door;
mod endings;
mod environment;
mod files;
mod floods;
mod hostile_files;
mod limits;
mod result;
mod stdin;
mod streams;
mod tunnels;
