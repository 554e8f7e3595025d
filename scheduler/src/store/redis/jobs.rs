//! The life of a job in Redis: begun, taken back, finished, cancelled, asked for; and what is said again to a Redis
//! that may have forgotten.

use std::{
    sync::{Arc, PoisonError, atomic::Ordering},
    time::Duration,
};

use redis::{FromRedisValue, RedisResult, ScriptInvocation, Value, aio::MultiplexedConnection, cmd};
use worker::{JobResult, Outcome};

use super::{
    RedisStore, RedisStoreError, Shared,
    held::{End, Ended, Underway},
    keys::name,
    link::Ask,
    millis, scripts,
};
use crate::{
    failpoint,
    key::{BodyDigest, JobKey},
    store::{Attempt, Begun, Cancelling, Finished, JobState, Store, StoreError},
};

/// Whoever comes for a job that another has asks again after this time at the earliest.
const AT_LEAST: Duration = Duration::from_millis(50);

impl From<RedisStoreError> for StoreError {
    fn from(error: RedisStoreError) -> Self {
        Self(Box::new(error))
    }
}

impl Store for RedisStore {
    async fn begin(&self, job: &JobKey, body: &BodyDigest) -> Result<Begun, StoreError> {
        loop {
            if let Some(begun) = self.shared.begin(job, body).await? {
                failpoint::pass("begun");
                return Ok(begun);
            }
        }
    }

    async fn release(&self, attempt: Attempt) -> Result<(), StoreError> {
        let Attempt { job, number, epoch, .. } = attempt;
        self.shared.commands.ask::<u64>(&self.shared.release(&job, epoch)).await?;
        self.shared.held.ended(Ended::now(job, epoch, number, None, End::Released));
        Ok(())
    }

    async fn finish(&self, attempt: Attempt, result: &JobResult) -> Result<Finished, StoreError> {
        let shared = &self.shared;
        let json: Arc<[u8]> = serde_json::to_vec(result).map_err(RedisStoreError::Unwritable)?.into();
        let Attempt { job, number, epoch, .. } = attempt;
        let digest = shared.held.underway(&job, epoch).map(|underway| underway.digest);
        let end = End::Result { outcome: result.outcome, json };
        let ended = Ended::now(job, epoch, number, digest, end);
        let answer: String = shared.commands.ask(&shared.finish(&ended, result.outcome, false)).await?;
        if answer == "stored" {
            shared.held.ended(ended);
            return Ok(Finished::Stored);
        }
        shared.held.dropped(&ended.job, epoch);
        shared.stale.fetch_add(1, Ordering::Relaxed);
        Ok(Finished::Stale)
    }

    async fn cancel(&self, job: &JobKey) -> Result<Cancelling, StoreError> {
        let shared = &self.shared;
        let mut ask = scripts::CANCEL.prepare_invoke();
        ask.key(shared.keys.job(job)).key(&shared.keys.cancels);
        ask.arg(name(job)).arg(&shared.keys.channel).arg(millis(shared.settings.outcomes_for));
        let answer: String = shared.commands.ask(&ask).await?;
        Ok(if answer == "over" { Cancelling::Over } else { Cancelling::Noted })
    }

    async fn state(&self, job: &JobKey) -> Result<Option<JobState>, StoreError> {
        type Fields = (Option<String>, Option<u32>, Option<String>, Option<String>);
        let shared = &self.shared;
        let mut ask = cmd("HMGET");
        ask.arg(shared.keys.job(job)).arg(&["state", "starts", "outcome", "cancelled"]);
        let (state, starts, outcome, cancelled): Fields = shared.commands.ask(&ask).await?;
        Ok(match (state.as_deref(), outcome) {
            (None, _) => None,
            (Some("waiting"), _) => Some(JobState::Waiting { cancelled: cancelled.is_some() }),
            (Some("begun"), _) => Some(JobState::Begun { attempt: starts.unwrap_or(1) }),
            (Some("over"), Some(outcome)) => Some(JobState::Over { outcome: named(&outcome)? }),
            (Some(other), _) => return Err(unknown(other).into()),
        })
    }

    async fn result(&self, job: &JobKey) -> Result<Option<JobResult>, StoreError> {
        let mut ask = cmd("GET");
        ask.arg(self.shared.keys.result(job));
        let json: Option<Vec<u8>> = self.shared.commands.ask(&ask).await?;
        let read = |json: Vec<u8>| serde_json::from_slice(&json);
        let bad = |error| RedisStoreError::Result { job: job.to_string(), error };
        Ok(json.map(read).transpose().map_err(bad)?)
    }

    async fn ended(&self, job: &JobKey) -> Result<Option<crate::store::Ended>, StoreError> {
        type Fields = (Option<String>, Option<u64>, Option<u32>, Option<String>);
        let shared = &self.shared;
        let mut ask = cmd("HMGET");
        ask.arg(shared.keys.job(job)).arg(&["state", "epoch", "starts", "outcome"]);
        let (state, epoch, starts, outcome): Fields = shared.commands.ask(&ask).await?;
        let (Some("over"), Some(epoch), Some(outcome)) = (state.as_deref(), epoch, outcome) else {
            return Ok(None);
        };
        // What is over stays so: nothing moves between the two questions.
        let (outcome, result) = (named(&outcome)?, self.result(job).await?);
        Ok(Some(crate::store::Ended { epoch, attempt: starts.unwrap_or(0), outcome, result }))
    }

    async fn unfinished(&self, most: usize) -> Result<Vec<JobKey>, StoreError> {
        let shared = &self.shared;
        let (mut cursor, mut jobs) = (0_u64, Vec::new());
        loop {
            let mut ask = cmd("HSCAN");
            ask.arg(&shared.keys.begun).arg(cursor).arg("COUNT").arg(100);
            let (next, page): (u64, Vec<(String, String)>) = shared.commands.ask(&ask).await?;
            for job in page.iter().filter_map(|(name, _)| name.parse().ok()) {
                // A scan may come by one entry twice.
                if jobs.len() < most && !jobs.contains(&job) && shared.remembers(&job).await? {
                    jobs.push(job);
                }
            }
            if next == 0 || jobs.len() >= most {
                return Ok(jobs);
            }
            cursor = next;
        }
    }
}

impl Shared {
    /// `None`: ask again.
    async fn begin(&self, job: &JobKey, body: &BodyDigest) -> Result<Option<Begun>, RedisStoreError> {
        // Known before it is sent: a heartbeat may come by before the answer does.
        let asking = self.held.asking();
        let mut ask = self.as_host(&scripts::BEGIN)?;
        ask.key(self.keys.job(job)).key(&self.keys.begun).key(&self.keys.cancels);
        ask.arg(&asking.token).arg(&body.as_bytes()[..]);
        ask.arg(millis(self.settings.outcomes_for)).arg(name(job));
        let answer: Vec<Value> = self.commands.ask(&ask).await?;
        let mut words = answer.into_iter();
        let what: String = word(&mut words)?;
        Ok(match what.as_str() {
            "attempt" => {
                let (epoch, number, cancelled) =
                    (word(&mut words)?, word(&mut words)?, word::<u8>(&mut words)? == 1);
                let underway = Underway { token: asking.token.clone(), digest: *body, number };
                self.held.begun(job.clone(), epoch, underway);
                let interrupted = number > 1;
                Some(Begun::Attempt(Attempt { job: job.clone(), number, epoch, interrupted, cancelled }))
            }
            "busy" => Some(Begun::Busy(Duration::from_micros(word(&mut words)?).max(AT_LEAST))),
            "over" => Some(Begun::Over),
            "taken" => Some(Begun::Taken),
            "late" => None,
            other => return Err(unknown(other)),
        })
    }

    /// Whether a job that began is still remembered. If not, nobody will come for it any more, and its entry goes.
    async fn remembers(&self, job: &JobKey) -> Result<bool, RedisStoreError> {
        let mut ask = cmd("EXISTS");
        ask.arg(self.keys.job(job));
        if self.commands.ask(&ask).await? {
            return Ok(true);
        }
        self.disown(job, &name(job), 0).await?;
        Ok(false)
    }

    fn release(&self, job: &JobKey, epoch: u64) -> ScriptInvocation<'static> {
        let mut ask = scripts::RELEASE.prepare_invoke();
        ask.key(self.keys.job(job)).key(&self.keys.begun).key(&self.keys.cancels);
        ask.arg(epoch).arg(name(job));
        ask
    }

    fn finish(&self, ended: &Ended, outcome: Outcome, confirmed: bool) -> ScriptInvocation<'static> {
        let Ended { job, epoch, number, digest, end, .. } = ended;
        let json: &[u8] = match end {
            End::Result { json, .. } => json,
            End::Released => &[],
        };
        let mut ask = scripts::FINISH.prepare_invoke();
        ask.key(self.keys.job(job)).key(self.keys.result(job)).key(&self.keys.begun).key(&self.keys.cancels);
        ask.arg(*epoch).arg(outcome.name()).arg(json);
        ask.arg(millis(self.settings.results_for)).arg(millis(self.settings.outcomes_for)).arg(name(job));
        ask.arg(digest.as_ref().map_or(&[][..], |digest| &digest.as_bytes()[..])).arg(*number);
        ask.arg(u8::from(confirmed));
        ask
    }

    fn restore(&self, job: &JobKey, epoch: u64, underway: &Underway) -> ScriptInvocation<'static> {
        let mut ask = scripts::RESTORE.prepare_invoke();
        ask.key(self.keys.job(job)).key(&self.keys.begun);
        ask.arg(epoch).arg(self.instance.as_deref().unwrap_or_default()).arg(&underway.token);
        ask.arg(&underway.digest.as_bytes()[..]).arg(underway.number);
        ask.arg(millis(self.settings.outcomes_for)).arg(name(job));
        ask
    }

    /// Tells a Redis process that was not spoken to before what it may have forgotten: first that we live, then how
    /// attempts ended, then which are under way.
    pub(super) async fn remind(&self, mut connection: MultiplexedConnection) -> RedisResult<()> {
        let process = process(&mut connection).await?;
        if process.is_some() && *self.known_process.lock().unwrap_or_else(PoisonError::into_inner) == process
        {
            return Ok(());
        }
        if let Ok(heartbeat) = self.heartbeat() {
            heartbeat.ask::<Value>(&mut connection).await?;
        }
        for ended in self.held.lately_ended() {
            match &ended.end {
                End::Released => {
                    self.release(&ended.job, ended.epoch).ask::<u64>(&mut connection).await?;
                }
                End::Result { outcome, .. } => {
                    let answer: String = self.finish(&ended, *outcome, true).ask(&mut connection).await?;
                    if answer != "stored" {
                        tracing::error!(job = %ended.job, epoch = ended.epoch,
                            "Redis forgot this job's result and has taken another since");
                    }
                }
            }
        }
        for ((job, epoch), underway) in self.held.all_underway() {
            if self.restore(&job, epoch, &underway).ask::<u64>(&mut connection).await? == 1 {
                tracing::warn!(%job, epoch, "Redis had forgotten that this job began");
            }
        }
        *self.known_process.lock().unwrap_or_else(PoisonError::into_inner) = process;
        Ok(())
    }
}

/// Which Redis process this is; `None` if it may not say.
async fn process(connection: &mut MultiplexedConnection) -> RedisResult<Option<String>> {
    let mut ask = cmd("INFO");
    ask.arg("server");
    match ask.ask::<String>(connection).await {
        Ok(info) => Ok(field(&info, "run_id").map(str::to_owned)),
        Err(error) if super::link::passes(&error) => Err(error),
        Err(_) => Ok(None),
    }
}

/// A line of what INFO says.
pub(super) fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
}

fn word<T: FromRedisValue>(words: &mut impl Iterator<Item = Value>) -> Result<T, RedisStoreError> {
    let word = words.next().unwrap_or(Value::Nil);
    let shown = format!("{word:?}");
    T::from_redis_value(word).map_err(|_| RedisStoreError::Answer { answer: shown })
}

fn named(outcome: &str) -> Result<Outcome, RedisStoreError> {
    serde_json::from_value(outcome.into()).map_err(|_| unknown(outcome))
}

fn unknown(answer: &str) -> RedisStoreError {
    RedisStoreError::Answer { answer: answer.to_owned() }
}
