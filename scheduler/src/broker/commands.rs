//! What only the broker's operator can do, as commands for `rabbitmqctl`. Pure.
//!
//! Users, permissions and policies cannot be set over AMQP. No password stands in a command: `add_user` asks for it on
//! its standard input.

use std::{fmt, time::Duration};

use super::{
    names::{reply_pattern, submit_pattern},
    topology::Topology,
};

/// One command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OperatorCommand {
    /// What it is for.
    pub why: String,
    /// The arguments of `rabbitmqctl`.
    pub args: Vec<String>,
    /// Whether it reads a password from its standard input.
    pub asks_password: bool,
    /// The first version of the broker that knows it, where not every one does.
    pub since: Option<&'static str>,
}

impl fmt::Display for OperatorCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("rabbitmqctl")?;
        self.args.iter().try_for_each(|arg| write!(f, " {}", quoted(arg)))
    }
}

/// The commands for a virtual host, the user `serve` for mayfly itself, and one user for each tenant, named as the
/// tenant. `hold`: how long a host may hold a job.
#[must_use]
pub fn commands(topology: &Topology, vhost: &str, serve: &str, hold: Duration) -> Vec<OperatorCommand> {
    let mut all = vec![
        command("where all of it is", &["add_vhost", vhost]),
        user("mayfly itself", serve),
        // The default exchange is for replies and for jobs that go to another tier.
        permissions(
            "mayfly itself",
            vhost,
            serve,
            [r"^mayfly\.", r"^(mayfly\..*|amq\.default)$", r"^mayfly\."],
        ),
    ];
    for tenant in &topology.tenants {
        let (name, who) = (tenant.name.as_str(), format!("tenant {}", tenant.name));
        let own = reply_pattern(name);
        all.push(user(&who, name));
        all.push(permissions(&who, vhost, name, [&own, &submit_pattern(name), &own]));
        let limits = r#"{"max-connections": 32, "max-channels": 256}"#;
        all.push(command(&format!("{who} cannot use up the broker"), &["set_user_limits", name, limits]));
    }
    let policy = |why: &str, name: &str, pattern: &str, what: &str| {
        let args = ["set_policy", "-p", vhost, "--apply-to", "queues", name, pattern, what];
        command(why, &args)
    };
    all.push(policy(
        "reply queues that nobody uses go away",
        "mayfly-replies",
        r"^mayfly\.reply\.",
        r#"{"expires": 86400000, "max-length": 10000}"#,
    ));
    all.push(OperatorCommand {
        since: Some("3.12"),
        ..policy(
            "how long a host may hold a job",
            "mayfly-jobs",
            r"^mayfly\.(jobs\.|returned$|unroutable$)",
            &format!(r#"{{"consumer-timeout": {}}}"#, hold.as_millis()),
        )
    });
    all
}

fn user(who: &str, name: &str) -> OperatorCommand {
    OperatorCommand { asks_password: true, ..command(&format!("the user of {who}"), &["add_user", name]) }
}

fn permissions(who: &str, vhost: &str, user: &str, [configure, write, read]: [&str; 3]) -> OperatorCommand {
    let args = ["set_permissions", "-p", vhost, user, configure, write, read];
    command(&format!("what {who} may do: make, write, read"), &args)
}

fn command(why: &str, args: &[&str]) -> OperatorCommand {
    let args = args.iter().map(|arg| (*arg).to_owned()).collect();
    OperatorCommand { why: why.to_owned(), args, asks_password: false, since: None }
}

/// For a shell.
fn quoted(arg: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
    if !arg.is_empty() && arg.chars().all(plain) {
        arg.to_owned()
    } else {
        format!("'{}'", arg.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use pool::Tier;

    use super::*;
    use crate::broker::TenantLanes;

    #[test]
    fn a_command_can_be_given_to_a_shell() {
        let topology = Topology::new(&[TenantLanes { name: "a.b".into(), floor: Tier::Vm }]);
        let all = commands(&topology, "/", "mayfly", Duration::from_secs(60));
        let lines: Vec<_> = all.iter().map(ToString::to_string).collect();
        assert!(lines.contains(&"rabbitmqctl add_user a.b".to_owned()));
        let rights = r"rabbitmqctl set_permissions -p / a.b '^mayfly\.reply\.a\.b\.[A-Za-z0-9_-]+$' '^mayfly\.submit\.a\.b$' '^mayfly\.reply\.a\.b\.[A-Za-z0-9_-]+$'";
        assert!(lines.iter().any(|line| line == rights), "{lines:#?}");
        assert_eq!(quoted("it's"), r"'it'\''s'");
    }
}
