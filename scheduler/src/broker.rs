//! The broker: what mayfly keeps on RabbitMQ, how it is reached, and who may do what there.
//!
//! - [`Topology`]: the exchanges, queues and bindings, as a description; [`declare()`] makes them, [`check()`] looks
//!   whether they are there, [`commands()`] says what only the broker's operator can do.
//! - [`Settings`]: where the broker is and who mayfly is there.
//! - [`Producer`]: sends jobs as a tenant, and waits for their results.
//! - [`DeadLetters`]: what was given up, to be looked at, sent again or thrown away.
//!
//! Pulling jobs is [`AmqpQueue`](crate::AmqpQueue)'s.

mod commands;
mod connect;
mod dead;
pub(crate) mod declare;
mod error;
pub(crate) mod link;
pub(crate) mod names;
mod producer;
pub(crate) mod properties;
mod settings;
pub(crate) mod topology;

pub use self::{
    commands::{OperatorCommand, commands},
    connect::{Connected, connect},
    dead::{DeadJob, DeadLetters},
    declare::{check, declare, depths},
    error::{BrokerError, Difference},
    link::{Health, LinkHealth},
    names::{Lane, is_reply_queue, submit_exchange},
    producer::{Answered, Producer, ReplyBy, Submission, Submitted, routing_key},
    settings::{BadSettings, Credential, Settings},
    topology::{TenantLanes, Topology},
};
