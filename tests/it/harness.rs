//! What every test stands on.
//!
//! Each test has a [`Node`]: a data directory of its own, with the images of all. What mayfly makes bears its node
//! and its instance, and the node's ledger names every instance that ever was, so a test can tell what it left from
//! what a parallel one, or another program on this machine, is using. A node that goes out of scope checks that
//! nothing is left.

mod canary;
mod cluster;
mod dockerd;
mod evidence;
mod host;
mod images;
mod libvirtd;
mod node;
mod process;
mod tiers;
mod wait;

pub(crate) use self::{
    canary::Canary,
    cluster::{Cluster, Host, script, submission},
    dockerd::use_by,
    evidence::{Evidence, HEARD},
    host::Sandbox,
    images::{forget_templates, templates},
    libvirtd::{config as libvirt_config, use_by as use_libvirtd},
    node::Node,
    process::{Finished, Mayfly, Running},
    tiers::{
        EMULATION, Place, Tier, by_libvirt_too, in_guest, on, on_every_tier, on_libvirt, ready, result_of,
        with_failpoints,
    },
    wait::{eventually, once_booted},
};
