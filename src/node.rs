//! This node as the command line and `mayfly.toml` describe it.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use clap::Args;
use pool::{DockerSettings, Nobody, PoolConfig, host::Query};
use scheduler::{
    config::{Config, ConfigError},
    control::Identity,
};
use worker::{ErrorReport, causes};

/// Where the configuration is looked for when nobody says where it is.
const CONFIG: &str = "/etc/mayfly/mayfly.toml";

/// Where mayfly keeps its things.
#[derive(Debug, Clone, Args)]
pub(crate) struct Places {
    /// Images and other things that outlive a reboot.
    #[arg(
        long,
        global = true,
        env = "MAYFLY_DATA_DIR",
        default_value = "/var/lib/mayfly",
        value_name = "DIR"
    )]
    pub(crate) data_dir: PathBuf,
    /// Locks and claims of the processes that live now; shared by all mayflies of this host.
    #[arg(long, global = true, env = "MAYFLY_RUN_DIR", default_value = "/run/mayfly", value_name = "DIR")]
    pub(crate) run_dir: PathBuf,
    /// What the operator decided [default: /etc/mayfly/mayfly.toml, if it is there].
    #[arg(long, global = true, env = "MAYFLY_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}

impl Places {
    /// What the operator decided; all defaults where nobody did.
    pub(crate) fn config(&self) -> Result<Config, ErrorReport> {
        let read = match &self.config {
            Some(path) => Config::load(path),
            None if Path::new(CONFIG).exists() => Config::load(Path::new(CONFIG)),
            None => Ok(Config::default()),
        };
        read.map_err(|error| bad_config(&error))
    }

    /// The pool of this node.
    pub(crate) fn pool(&self, config: &Config) -> PoolConfig {
        PoolConfig {
            data_dir: self.data_dir.clone(),
            run_dir: self.run_dir.clone(),
            // Whatever becomes of the file that it was started from, this is the very same program.
            spawner: PathBuf::from("/proc/self/exe"),
            settings: config.pool.settings(),
            docker: docker(config),
            vm: config.vm.settings(),
            witness: Arc::new(Nobody),
            classes: config.shapes(),
        }
    }
}

/// Says what is wrong with the configuration.
pub(crate) fn bad_config(error: &ConfigError) -> ErrorReport {
    let hint = match error {
        ConfigError::Read { .. } => "name the file by --config or MAYFLY_CONFIG",
        _ => "the annotated example, deploy/mayfly.toml, shows every setting",
    };
    ErrorReport::new("the configuration cannot be used", causes(error), hint)
}

/// This process, as it introduces itself.
pub(crate) fn identity(verb: &str) -> Identity {
    Identity {
        pid: std::process::id(),
        verb: verb.to_owned(),
        host: host_name(),
        release: env!("CARGO_PKG_VERSION").to_owned(),
        ..Identity::default()
    }
}

/// The name that this host goes by.
pub(crate) fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map_or_else(|_: io::Error| "unknown".to_owned(), |name| name.trim().to_owned())
}

/// What to look at on this node.
pub(crate) fn query(places: &Places, config: &Config, images: Result<Vec<String>, String>) -> Query {
    Query {
        data_dir: places.data_dir.clone(),
        run_dir: places.run_dir.clone(),
        docker: docker(config),
        vm: config.vm.settings(),
        images,
    }
}

/// The docker daemon of this node. `DOCKER_HOST` is what docker's own programs go by.
fn docker(config: &Config) -> DockerSettings {
    config.docker.settings(std::env::var("DOCKER_HOST").ok())
}
