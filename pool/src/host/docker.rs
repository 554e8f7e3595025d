//! Whether a docker daemon answers, and is one that the docker tier can be built on.

use super::{Finding, State};
use crate::docker::{Docker, DockerError, Engine, inspect};

pub(super) fn look(settings: &Docker) -> Finding {
    judge(settings, inspect(settings))
}

fn judge(settings: &Docker, found: Result<Engine, DockerError>) -> Finding {
    let finding = |state, detail| Finding::new("docker", "docker", state, detail);
    match found {
        Ok(engine) => {
            let Engine { version, runtime, runtime_version, old, .. } = engine;
            let runtime_version = runtime_version.unwrap_or_else(|| "of an unknown version".to_owned());
            let detail = format!("version {version}, {runtime} {runtime_version}, {}", settings.host);
            if old {
                let caveat = "; old runtime: it has known ways out of a container, and results say so";
                finding(State::Degraded, detail + caveat)
                    .mended_by("install runc 1.2.8, 1.3.3, 1.4.0 or later")
            } else {
                finding(State::Ok, detail)
            }
        }
        // Jobs of the other tiers run without it.
        Err(error) => finding(State::Missing, error.to_string()).mended_by(error.fix()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_without_a_daemon_is_told_what_to_install() {
        let settings = Docker { host: "unix:///nowhere/docker.sock".to_owned(), ..Docker::default() };
        let seen = look(&settings);
        assert_eq!(seen.state, State::Missing);
        assert!(seen.detail.contains("/nowhere/docker.sock"), "{}", seen.detail);
        assert!(seen.fix.unwrap().contains("docker.io"));
    }

    #[test]
    fn a_daemon_of_another_host_is_refused_with_the_reason() {
        let settings = Docker { host: "tcp://192.0.2.1:2375".to_owned(), ..Docker::default() };
        let seen = look(&settings);
        assert!(
            seen.state == State::Missing && seen.detail.contains("tcp://192.0.2.1:2375"),
            "{}",
            seen.detail
        );
        assert!(seen.fix.unwrap().contains("DOCKER_HOST"));
    }

    #[test]
    fn an_old_runtime_is_named_whether_or_not_it_is_allowed() {
        let old = DockerError::OldRuntime { runtime: "runc".to_owned(), found: "1.1.5".to_owned() };
        let refused = judge(&Docker::default(), Err(old));
        assert!(refused.state == State::Missing && refused.detail.contains("1.1.5"), "{}", refused.detail);
        assert!(refused.fix.unwrap().contains("allow_old_runtime"));
    }
}
