//! Whether this Redis keeps what it answered, and whether it is one that the store can stand on at all.

use redis::{RedisError, cmd};

use super::{RedisStore, RedisStoreError, jobs::field};

/// Whether Redis keeps what it answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Durability {
    /// What was answered is on disk, and is not evicted.
    Kept,
    /// It may be forgotten; for this reason, and this is what to set.
    Forgetful(String),
    /// Redis does not say. It counts as forgetful.
    Unknown(String),
}

/// What must be set, and to what.
const SETTINGS: [(&str, &str); 4] = [
    ("appendonly", "yes"),
    ("appendfsync", "always"),
    // While the file is rewritten, nothing is synced otherwise.
    ("no-appendfsync-on-rewrite", "no"),
    ("maxmemory-policy", "noeviction"),
];

impl RedisStore {
    /// Asks Redis whether it keeps what it answers.
    pub async fn check_durability(&self) -> Result<Durability, RedisStoreError> {
        let mut wrong = Vec::new();
        for (name, wanted) in SETTINGS {
            let mut ask = cmd("CONFIG");
            ask.arg("GET").arg(name);
            match self.shared.commands.ask::<Vec<String>>(&ask).await {
                Ok(answer) => match answer.get(1) {
                    Some(found) if found == wanted => {}
                    Some(found) => wrong.push(format!("{name} is {found} and must be {wanted}")),
                    None => return Ok(Durability::Unknown(format!("it does not know the setting {name}"))),
                },
                Err(RedisStoreError::Refused(error)) => {
                    return Ok(Durability::Unknown(format!("it does not tell its settings: {error}")));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(if wrong.is_empty() { Durability::Kept } else { Durability::Forgetful(wrong.join(", ")) })
    }

    /// Asks once, without waiting for a Redis that is away, whether it is there and of a kind that this store can
    /// stand on. Says which version it is.
    pub async fn check(&self) -> Result<String, RedisStoreError> {
        let shared = &self.shared;
        let address = shared.settings.address.to_string();
        let away = |error: RedisError| RedisStoreError::Away { address: address.clone(), error };
        let mut ask = cmd("INFO");
        ask.arg("everything");
        let info: String = shared.commands.try_once(&ask).await.map_err(away)?;
        let version = field(&info, "redis_version").unwrap_or("0").to_owned();
        let unfit = |what: String| Err(RedisStoreError::Unfit { address: address.clone(), what });
        if field(&info, "cluster_enabled") == Some("1") {
            return unfit(
                "is a cluster, which loses answered writes when it fails over; use one server".to_owned(),
            );
        }
        if field(&info, "role").is_some_and(|role| role != "master") {
            return unfit("is a replica; give the address of the server that it follows".to_owned());
        }
        if version.split('.').next().and_then(|major| major.parse().ok()).unwrap_or(0) < 6 {
            return unfit(format!("is version {version}; 6 is the first that will do"));
        }
        Ok(version)
    }
}
