//! The section `[selftest]`: when a host that serves attacks its own sandboxes.

use std::time::Duration;

use serde::Deserialize;

use super::{ConfigError, some_time};

/// When the selftest is run beside serving.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SelftestPart {
    /// Whether no job is taken before it has been run.
    pub at_start: bool,
    /// How long after one run the next begins; `None`: there is none.
    #[serde(with = "humantime_serde")]
    pub every: Option<Duration>,
    /// The image to run in.
    pub image: String,
}

impl Default for SelftestPart {
    fn default() -> Self {
        Self { at_start: false, every: None, image: "minimal".to_owned() }
    }
}

impl SelftestPart {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        self.every.map_or(Ok(()), |every| some_time("selftest.every", every))
    }
}
