//! The daemon: reached over its socket, asked what it is, and refused when it cannot make sandboxes.

use std::collections::HashMap;

use bollard::{
    API_DEFAULT_VERSION,
    models::{SystemInfo, SystemInfoCgroupDriverEnum, SystemVersion},
};

use super::{
    DockerError,
    floor::{FLOOR, is_old},
    settings::Docker,
};

/// No single request takes so long, but that an image is large.
const TIMEOUT_SECONDS: u64 = 120;

/// Runtimes whose containers are processes of the host's kernel: mayfly looks at them and puts their root together. Others
/// (gVisor's `runsc`, Kata) have a kernel of their own between, and are used only if they are named.
pub(super) const SHARING: [&str; 3] = ["runc", "crun", "youki"];

/// What a daemon is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Engine {
    /// Its version.
    pub version: String,
    /// The runtime that makes the containers.
    pub runtime: String,
    /// The runtime's version, where the daemon tells it.
    pub runtime_version: Option<String>,
    /// Whether the runtime has known ways out of its containers, and is used because the operator allows it.
    pub old: bool,
    /// Whether a container's cgroup can be put where mayfly says: the daemon makes cgroups by itself, and not systemd.
    pub(super) places_cgroups: bool,
    /// Whether a kernel of its own lies between a container and the host's.
    pub own_kernel: bool,
}

impl Engine {
    /// What results say of a runtime that should not be used.
    pub(super) fn caveat(&self) -> Option<String> {
        let Self { runtime, old, own_kernel, .. } = self;
        if *own_kernel {
            return Some(format!(
                "runtime {runtime}: it has a kernel of its own, and the host does not see the job's processes"
            ));
        }
        let version = self.runtime_version.as_deref().unwrap_or("of an unknown version");
        old.then(|| format!("old runtime: {runtime} {version} has known ways out of a container"))
    }
}

/// A connection for each request to one daemon.
pub(super) async fn connect(settings: &Docker) -> Result<bollard::Docker, DockerError> {
    let socket = settings.socket()?.to_string_lossy().into_owned();
    let away = |error| DockerError::Away { socket: socket.clone(), error: Box::new(error) };
    let client =
        bollard::Docker::connect_with_unix(&socket, TIMEOUT_SECONDS, API_DEFAULT_VERSION).map_err(away)?;
    client.negotiate_version().await.map_err(away)
}

/// Asks the daemon what it is, and whether sandboxes can be made with it.
pub(super) async fn ask(client: &bollard::Docker, settings: &Docker) -> Result<Engine, DockerError> {
    let ask = |what| move |error| DockerError::Request { what, error: Box::new(error) };
    let version = client.version().await.map_err(ask("ask the daemon for its version"))?;
    let info = client.info().await.map_err(ask("ask the daemon what it can"))?;
    judge(&version, &info, settings)
}

fn judge(version: &SystemVersion, info: &SystemInfo, settings: &Docker) -> Result<Engine, DockerError> {
    let refuse = |why: &str| Err(DockerError::Unfit(why.to_owned()));
    let options = info.security_options.clone().unwrap_or_default();
    let has = |name: &str| options.iter().any(|option| option.split(',').any(|word| word == name));
    if has("name=userns") {
        return refuse("it remaps users (userns-remap), and each sandbox needs ids of its own on the host");
    }
    if has("name=rootless") {
        return refuse("it is rootless, and each sandbox needs ids and limits of its own on the host");
    }
    if !has("name=seccomp") || has("profile=unconfined") {
        return refuse("it starts containers without a seccomp filter");
    }
    let runtime = settings.runtime.as_ref().or(info.default_runtime.as_ref()).cloned().unwrap_or_default();
    let runtimes = info.runtimes.clone().unwrap_or_default();
    let Some(known) = runtimes.get(&runtime) else {
        let mut names: Vec<_> = runtimes.into_keys().collect();
        names.sort();
        return Err(DockerError::NoRuntime { runtime, known: names.join(", ") });
    };
    let program = known.path.as_deref().unwrap_or(&runtime).rsplit('/').next().unwrap_or_default().to_owned();
    let own_kernel = !SHARING.contains(&program.as_str());
    if own_kernel && settings.runtime.is_none() {
        return Err(DockerError::Unnamed { runtime });
    }
    let runtime_version = version_of(version, &program);
    // The floor is runc's; the others never had these faults, or not these versions.
    let old = program == "runc" && is_old(runtime_version.as_deref().unwrap_or_default());
    if old && !settings.allow_old_runtime {
        let found = runtime_version.unwrap_or_else(|| "of an unknown version".to_owned());
        return Err(DockerError::OldRuntime { runtime: program, found });
    }
    Ok(Engine {
        version: version.version.clone().unwrap_or_default(),
        runtime,
        runtime_version,
        old,
        own_kernel,
        places_cgroups: info.cgroup_driver == Some(SystemInfoCgroupDriverEnum::CGROUPFS),
    })
}

fn version_of(version: &SystemVersion, component: &str) -> Option<String> {
    let components: HashMap<_, _> = version
        .components
        .iter()
        .flatten()
        .map(|component| (component.name.as_str(), component.version.as_str()))
        .collect();
    components.get(component).map(|version| (*version).to_owned())
}

/// What to install, for messages.
pub(super) fn floor() -> &'static str {
    FLOOR
}
