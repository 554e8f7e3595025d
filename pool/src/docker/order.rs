//! What the daemon is told to make: everything that it can take away, taken away.
//!
//! Called without options it gives a container the host's user 0 with 14 capabilities, a network, a root that can be
//! written to without bound, and logs that grow without bound.

use std::collections::HashMap;

use agent::message::AGENT_PATH;
use bollard::models::{
    ContainerCreateBody, HostConfig, HostConfigCgroupnsModeEnum, HostConfigLogConfig, ResourcesUlimits,
};

use crate::{
    limits::{AGENT_MEMORY, AGENT_PIDS, KERNEL_MEMORY, Limits},
    workshop::HOSTNAME,
};

const CPU_PERIOD_US: i64 = 100_000;

/// One container to make.
#[derive(Debug)]
pub(super) struct Order {
    /// The image's name at the daemon.
    pub(super) image: String,
    /// The container's user and group on the host.
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) limits: Limits,
    pub(super) runtime: String,
    /// Whether the runtime has a kernel of its own.
    pub(super) own_kernel: bool,
    /// Where its cgroup is put, if the daemon can be told.
    pub(super) cgroup_parent: Option<String>,
    pub(super) labels: HashMap<String, String>,
}

impl Order {
    pub(super) fn body(self) -> ContainerCreateBody {
        ContainerCreateBody {
            image: Some(self.image.clone()),
            // The image has no configuration: what is said here is all there is.
            cmd: Some(vec![AGENT_PATH.to_owned()]),
            user: Some(format!("{}:{}", self.uid, self.gid)),
            hostname: Some(HOSTNAME.to_owned()),
            working_dir: Some("/".to_owned()),
            attach_stdin: Some(true),
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            open_stdin: Some(true),
            // The end of the attached stream is the end of the agent's.
            stdin_once: Some(true),
            tty: Some(false),
            network_disabled: Some(true),
            // PID 1 does not heed TERM, and a daemon that stops would wait ten seconds for each.
            stop_signal: Some("SIGKILL".to_owned()),
            labels: Some(self.labels.clone()),
            host_config: Some(self.host_config()),
            ..ContainerCreateBody::default()
        }
    }

    fn host_config(self) -> HostConfig {
        let Limits { cpu_millis, memory, pids, disk, inodes, open_files } = self.limits;
        let beside = if self.own_kernel { KERNEL_MEMORY } else { AGENT_MEMORY };
        let memory = (memory + beside).cast_signed();
        // Such a kernel's own threads are many, and it counts processes by itself.
        let pids = (!self.own_kernel).then(|| (AGENT_PIDS + u64::from(pids)).cast_signed());
        HostConfig {
            privileged: Some(false),
            cap_drop: Some(vec!["ALL".to_owned()]),
            // Beside it the daemon's own seccomp profile and, where there is one, its AppArmor profile hold.
            security_opt: Some(vec!["no-new-privileges:true".to_owned()]),
            readonly_rootfs: Some(true),
            tmpfs: Some(tmpfs(disk, inodes)),
            network_mode: Some("none".to_owned()),
            // Else its `resolv.conf` would name the host's own.
            dns: Some(vec!["127.0.0.1".to_owned()]),
            dns_search: Some(vec![".".to_owned()]),
            ipc_mode: Some("private".to_owned()),
            cgroupns_mode: Some(HostConfigCgroupnsModeEnum::PRIVATE),
            log_config: Some(HostConfigLogConfig { typ: Some("none".to_owned()), config: None }),
            auto_remove: Some(true),
            memory: Some(memory),
            // Together with swap: there is none.
            memory_swap: Some(memory),
            pids_limit: pids,
            cpu_period: Some(CPU_PERIOD_US),
            // The job's leaf has the job's; the agent, which must not wait for it, has one CPU more. `nano_cpus` would be
            // refused where a job may use more CPUs than there are.
            cpu_quota: Some(i64::from(cpu_millis) * CPU_PERIOD_US / 1000 + CPU_PERIOD_US),
            ulimits: Some(vec![ulimit("core", 0), ulimit("nofile", open_files.max(1024).cast_signed())]),
            cgroup_parent: self.cgroup_parent,
            runtime: Some(self.runtime),
            ..HostConfig::default()
        }
    }
}

/// Where anything can be written, until the one disk of the sandbox lies over it. All together are as large as that.
fn tmpfs(disk: u64, inodes: u64) -> HashMap<String, String> {
    let places = [("/job", 2), ("/tmp", 4), ("/dev/shm", 4)];
    let options = |part: u64| {
        format!("rw,exec,nosuid,nodev,size={},nr_inodes={},mode=1777", disk / part, (inodes / part).max(4))
    };
    places.into_iter().map(|(place, part)| (place.to_owned(), options(part))).collect()
}

fn ulimit(name: &str, value: i64) -> ResourcesUlimits {
    ResourcesUlimits { name: Some(name.to_owned()), soft: Some(value), hard: Some(value) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order() -> Order {
        Order {
            image: "mayfly:0".to_owned(),
            uid: 0x7000_0000,
            gid: 0x7000_0001,
            limits: Limits { cpu_millis: 64_000, ..Limits::default() },
            runtime: "runc".to_owned(),
            own_kernel: false,
            cgroup_parent: None,
            labels: HashMap::new(),
        }
    }

    #[test]
    fn a_container_is_given_nothing_that_it_could_do_without() {
        let body = order().body();
        let host = body.host_config.unwrap();
        assert_eq!(body.user.unwrap(), "1879048192:1879048193");
        assert_eq!((host.privileged, host.readonly_rootfs, body.tty), (Some(false), Some(true), Some(false)));
        assert_eq!(host.cap_drop.unwrap(), ["ALL"]);
        assert_eq!((host.cap_add, host.devices, host.group_add), (None, None, None));
        assert_eq!((host.binds, host.mounts, host.volumes_from), (None, None, None));
        assert_eq!((host.masked_paths, host.readonly_paths), (None, None), "docker's own lists hold");
        assert_eq!(host.security_opt.unwrap(), ["no-new-privileges:true"]);
        assert_eq!((host.network_mode.unwrap(), host.ipc_mode.unwrap()), ("none".into(), "private".into()));
        assert_eq!((host.pid_mode, host.uts_mode, host.userns_mode), (None, None, None));
        assert_eq!((host.memory, host.auto_remove), (host.memory_swap, Some(true)));
        assert_eq!(host.log_config.unwrap().typ.unwrap(), "none");
    }

    #[test]
    fn a_kernel_of_its_own_has_room_beside_the_job_and_counts_processes_by_itself() {
        let shared = order().body().host_config.unwrap();
        let own = Order { own_kernel: true, ..order() }.body().host_config.unwrap();
        assert!(own.memory > shared.memory && own.memory == own.memory_swap);
        assert!(shared.pids_limit.is_some() && own.pids_limit.is_none());
    }

    #[test]
    fn all_that_can_be_written_is_no_more_than_the_disk() {
        let sum = |sizes: HashMap<String, String>| -> u64 {
            let size = |options: &String| {
                options.split(',').find_map(|word| word.strip_prefix("size=")?.parse::<u64>().ok()).unwrap()
            };
            sizes.values().map(size).sum()
        };
        assert_eq!(sum(tmpfs(1 << 20, 100)), 1 << 20);
        assert!(tmpfs(1 << 20, 16).values().all(|options| options.contains("nr_inodes=")));
    }
}
