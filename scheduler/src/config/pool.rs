//! The sections `[pool]` and `[classes]`: how many sandboxes there are, and of which limits.

use std::{collections::BTreeMap, time::Duration};

use images::ImageRef;
use pool::{Limits, Settings, Tier, Want};
use serde::Deserialize;
use worker::Size;

use super::{ConfigError, some_time};

/// How many sandboxes there are.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PoolPart {
    /// Sandboxes that may exist at once.
    pub max_instances: usize,
    /// Sandboxes that may be made at once. Twice as many when jobs wait.
    pub making_at_once: usize,
    /// How long after its last job a kind of sandbox is still made ahead.
    #[serde(with = "humantime_serde")]
    pub idle_time: Duration,
    /// How long a clean sandbox may wait before it is replaced.
    #[serde(with = "humantime_serde")]
    pub ready_ttl: Duration,
    /// Sandboxes that wait even when no job comes.
    pub keep: Vec<Keep>,
}

/// Sandboxes of one kind that wait even when no job comes.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Keep {
    /// Of which isolation.
    pub tier: Tier,
    /// Of which image: `name`, or `name@sha256:…`.
    pub image: String,
    /// Of which class; the default limits if missing.
    pub class: Option<String>,
    /// Whose, where tenants share no memory (`vm.sharing`).
    pub tenant: Option<String>,
    /// How many.
    pub idle_count: usize,
}

/// Limits of which sandboxes are made ahead. A job gets the smallest class that holds what it asks.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Class {
    /// CPUs, such as 0.5 or 2.
    pub cpus: f64,
    /// Memory of all processes and files.
    pub memory: Size,
    /// Bytes in files. Half of the memory if missing.
    pub disk: Option<Size>,
    /// Processes and threads.
    pub pids: Option<u32>,
}

impl Default for PoolPart {
    fn default() -> Self {
        let Settings { max_instances, making_at_once, idle_time, ready_ttl, .. } = Settings::default();
        Self { max_instances, making_at_once, idle_time, ready_ttl, keep: Vec::new() }
    }
}

impl PoolPart {
    pub(super) fn check(&self, classes: &BTreeMap<String, Class>) -> Result<(), ConfigError> {
        for (field, number) in
            [("pool.max_instances", self.max_instances), ("pool.making_at_once", self.making_at_once)]
        {
            if number == 0 {
                return Err(ConfigError::value(field, "with none, no job can run"));
            }
        }
        some_time("pool.idle_time", self.idle_time)?;
        some_time("pool.ready_ttl", self.ready_ttl)?;
        self.keep.iter().enumerate().try_for_each(|(index, keep)| {
            let field = format!("pool.keep[{index}]");
            keep.want(classes).map(drop).map_err(|problem| ConfigError::value(field, problem))
        })
    }

    /// As the pool takes it.
    #[must_use]
    pub fn settings(&self) -> Settings {
        Settings {
            idle_count: 0,
            idle_time: self.idle_time,
            ready_ttl: self.ready_ttl,
            max_instances: self.max_instances,
            making_at_once: self.making_at_once,
        }
    }
}

impl Keep {
    /// The kind of sandbox, or why there is none such.
    pub fn want(&self, classes: &BTreeMap<String, Class>) -> Result<Want, String> {
        let image: ImageRef = self.image.parse().map_err(|error: images::RefError| error.to_string())?;
        let limits = match &self.class {
            None => Limits::default(),
            Some(name) => match classes.get(name) {
                Some(class) => class.limits(),
                None => return Err(format!("there is no class \"{name}\"; write one as [classes.{name}]")),
            },
        };
        Ok(Want { tier: self.tier, image, limits, owner: self.tenant.clone() })
    }
}

impl Class {
    /// The limits of its sandboxes.
    #[must_use]
    pub fn limits(&self) -> Limits {
        let memory = self.memory.bytes();
        let defaults = Limits::default();
        Limits {
            // What is no number of CPUs is below the least, and so refused.
            cpu_millis: (self.cpus * 1000.0).round().clamp(0.0, 1_024_000.0) as u32,
            memory,
            disk: self.disk.map_or_else(|| Limits::disk_for(memory), Size::bytes),
            pids: self.pids.unwrap_or(defaults.pids),
            ..defaults
        }
    }
}
