//! Real servers for tests, each on a loopback port of its own, in a scratch directory.
//!
//! A server ends with the process that started it, however that ends: a keeper beside it waits for the end of a pipe
//! that only this process holds. Knows nothing of mayfly.

mod chromium;
mod dockerd;
mod libvirtd;
mod port;
mod process;
mod prometheus;
mod proxy;
mod rabbitmq;
mod redis;
#[cfg(feature = "s3")]
mod s3;
mod scratch;
mod skip;
mod trixie;

pub use chromium::Chromium;
pub use dockerd::{Dockerd, ask_docker};
pub use libvirtd::{Libvirtd, virsh};
pub use port::free_port;
pub use process::Process;
pub use prometheus::{Prometheus, get};
pub use proxy::Proxy;
pub use rabbitmq::{RabbitMq, Version};
pub use redis::Redis;
#[cfg(feature = "s3")]
pub use s3::S3;
pub use scratch::Scratch;
pub use skip::{skipped, tell_skipped};
