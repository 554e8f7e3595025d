//! The unix socket of a live process: others ask it what it does, and to cancel a job.
//!
//! ```text
//! <run dir>/control/<pid>-<random>.sock      mode 0600; one JSON object a line, a question and its answer
//! ```

pub mod client;

use std::{
    fs::{self, DirBuilder, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Weak},
    time::Duration,
};

use pool::{KindStatus, Tier};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    task::JoinHandle,
    time::timeout,
};

use crate::{
    board::RunningJob,
    dispatch::Dispatcher,
    key::JobKey,
    live::{Look, Snapshot, reasons},
    metrics::View,
    queue::Queue,
    runner::Runner,
    store::{Cancelling, JobState, Store},
    ward::Resting,
};

/// The version of the questions and answers.
const VERSION: u32 = 1;
/// The longest question.
const LONGEST: u64 = 64 * 1024;
/// How long a connection may stay without a word.
const PATIENCE: Duration = Duration::from_secs(10);
/// Whose job is meant by an id alone.
const TENANT: &str = "local";

/// A question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case", deny_unknown_fields)]
pub enum Ask {
    /// What goes on.
    Status,
    /// What is known of a job: `ID` or `TENANT/ID`.
    Job {
        /// Which.
        job: String,
    },
    /// The job is not wanted any more.
    Cancel {
        /// Which.
        job: String,
    },
    /// How the sandboxes stand.
    Pool,
    /// All that its page shows.
    Snapshot,
}

/// An answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Answer {
    /// To [`Ask::Status`].
    Status(Status),
    /// To [`Ask::Job`]; missing if it is not known here.
    Job {
        /// What is known.
        job: Option<JobStatus>,
    },
    /// To [`Ask::Cancel`].
    Cancel {
        /// What became of it.
        cancelled: CancelStatus,
    },
    /// To [`Ask::Pool`].
    Pool {
        /// One for each kind of sandbox.
        kinds: Vec<KindStatus>,
        /// The tiers on which no sandbox can be made for now.
        #[serde(default)]
        resting: Vec<Resting>,
    },
    /// To [`Ask::Snapshot`].
    Snapshot(Box<Snapshot>),
    /// The question cannot be answered.
    Error {
        /// Why.
        why: String,
    },
}

/// A line in either direction.
#[derive(Debug, Serialize, Deserialize)]
struct Envelope<T> {
    version: u32,
    #[serde(flatten)]
    content: T,
}

/// Who a live process is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Its process id.
    pub pid: u32,
    /// What it was started for: `batch` or `serve`.
    pub verb: String,
    /// The host's name.
    #[serde(default)]
    pub host: String,
    /// The release of mayfly. Not its `version`: that is the protocol's in every line.
    #[serde(default)]
    pub release: String,
    /// Where its jobs come from: a file, or a broker's address.
    pub jobs: String,
    /// Where its results go: a file, or a store's address.
    pub results: String,
    /// How many jobs there are in all, where that is known.
    pub total: Option<u64>,
}

/// What a live process does.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// Who answers.
    #[serde(flatten)]
    pub who: Identity,
    /// Jobs that have their result.
    pub ended: u64,
    /// How many ended how.
    pub outcomes: Vec<(String, u64)>,
    /// Jobs that wait.
    pub waiting: u64,
    /// Why they wait; missing if none does.
    pub waiting_for: Option<String>,
    /// The same, told apart by whose they are and what they need.
    #[serde(default)]
    pub lanes: Vec<LaneStatus>,
    /// Jobs at once.
    pub slots: usize,
    /// Those that run.
    pub running: Vec<RunningJob>,
    /// How often a job was given another sandbox.
    pub retries: u64,
    /// The tiers on which no sandbox can be made for now.
    #[serde(default)]
    pub resting: Vec<Resting>,
    /// Whether no more jobs are started.
    pub stopping: bool,
}

/// Jobs that wait for the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneStatus {
    /// Whose they are, where that is known.
    pub tenant: Option<String>,
    /// The tier that they need, where that is known.
    pub tier: Option<Tier>,
    /// Whether they go before others of their tenant's.
    pub high: bool,
    /// How many.
    pub jobs: u64,
    /// Why they wait.
    pub why: String,
}

/// What is known of one job.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct JobStatus {
    /// Which.
    pub job: JobKey,
    /// Where it stands.
    #[serde(flatten)]
    pub state: JobState,
    /// What is known while it runs.
    pub running: Option<RunningJob>,
    /// Why it waits, if it does.
    pub waiting_for: Option<String>,
}

/// What became of a cancellation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CancelStatus {
    /// It runs, and has been told to end.
    Told,
    /// It has not begun, and will not.
    Noted,
    /// It has its result already.
    Over,
    /// No such job here.
    Unknown,
}

/// The socket, open until this is dropped.
#[derive(Debug)]
pub struct Control {
    path: PathBuf,
    server: JoinHandle<()>,
}

/// The folder of the sockets.
#[must_use]
pub fn folder(run_dir: &Path) -> PathBuf {
    run_dir.join("control")
}

impl Control {
    /// Opens the socket and answers from now on, as `look` sees it.
    pub fn listen<Q: Queue, S: Store, R: Runner>(
        run_dir: &Path,
        who: Identity,
        engine: &Arc<Dispatcher<Q, S, R>>,
        look: Look,
    ) -> io::Result<Self> {
        let folder = folder(run_dir);
        DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        // What killed processes left goes now.
        client::live(run_dir)?;
        let name = format!("{}-{}", who.pid, pool::Id::random().short());
        let (nascent, path) = (folder.join(&name), folder.join(format!("{name}.sock")));
        // It gets its name once somebody listens: before, it would be taken for a dead one's.
        let listener = UnixListener::bind(&nascent)?;
        fs::set_permissions(&nascent, Permissions::from_mode(0o600))?;
        fs::rename(&nascent, &path)?;
        let answerer = Arc::new(Answerer { who, engine: Arc::downgrade(engine), look });
        let server = tokio::spawn(async move {
            // An accept that fails (no descriptors left, say) is tried again when the next one comes.
            loop {
                if let Ok((stream, _)) = listener.accept().await {
                    tokio::spawn(Arc::clone(&answerer).attend(stream));
                } else {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        });
        Ok(Self { path, server })
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.server.abort();
        // Whoever finds it still there finds nobody behind it, and removes it.
        let _ = fs::remove_file(&self.path);
    }
}

struct Answerer<Q, S, R> {
    who: Identity,
    /// A connection that stays open does not keep the engine from its end.
    engine: Weak<Dispatcher<Q, S, R>>,
    look: Look,
}

impl<Q: Queue, S: Store, R: Runner> Answerer<Q, S, R> {
    /// Answers one question after the other.
    async fn attend(self: Arc<Self>, stream: UnixStream) {
        let (reader, mut writer) = stream.into_split();
        let mut reader = BufReader::new(reader);
        loop {
            let mut line = Vec::new();
            let read = timeout(PATIENCE, (&mut reader).take(LONGEST).read_until(b'\n', &mut line)).await;
            if !matches!(read, Ok(Ok(1..))) {
                return;
            }
            let answer = match serde_json::from_slice::<Envelope<Ask>>(&line) {
                Ok(Envelope { version: VERSION, content }) => self.answer(content).await,
                Ok(Envelope { version, .. }) => {
                    Answer::Error { why: format!("version {version} of the protocol is not known here") }
                }
                Err(error) => Answer::Error { why: error.to_string() },
            };
            let Ok(mut line) = serde_json::to_vec(&Envelope { version: VERSION, content: answer }) else {
                return;
            };
            line.push(b'\n');
            if !matches!(timeout(PATIENCE, writer.write_all(&line)).await, Ok(Ok(()))) {
                return;
            }
        }
    }

    async fn answer(&self, ask: Ask) -> Answer {
        let Some(engine) = self.engine.upgrade() else {
            return Answer::Error { why: "it has just ended".to_owned() };
        };
        let Some(view) = self.look.view() else {
            return Answer::Error { why: "it has just ended".to_owned() };
        };
        match ask {
            Ask::Snapshot => match self.look.snapshot() {
                Some(snapshot) => Answer::Snapshot(Box::new(snapshot)),
                None => Answer::Error { why: "it has just ended".to_owned() },
            },
            Ask::Status => Answer::Status(self.status(&engine, view)),
            Ask::Pool => Answer::Pool { kinds: view.kinds, resting: view.resting },
            Ask::Job { job } => match job_status(&engine, &key(&job), view, &self.look).await {
                Ok(job) => Answer::Job { job },
                Err(why) => Answer::Error { why },
            },
            Ask::Cancel { job } => match cancel(&engine, &key(&job)).await {
                Ok(cancelled) => Answer::Cancel { cancelled },
                Err(why) => Answer::Error { why },
            },
        }
    }

    fn status(&self, engine: &Dispatcher<Q, S, R>, view: View) -> Status {
        let board = engine.board();
        let tally = board.tally();
        let lanes: Vec<LaneStatus> = reasons::lanes(&view).collect();
        let waiting = lanes.iter().map(|lane| lane.jobs).sum();
        Status {
            who: self.who.clone(),
            ended: tally.total(),
            outcomes: tally.outcomes().map(|(outcome, count)| (outcome.name().to_owned(), count)).collect(),
            waiting,
            // Of most of them.
            waiting_for: lanes.iter().max_by_key(|lane| lane.jobs).map(|lane| lane.why.clone()),
            lanes,
            slots: view.slots,
            running: view.running,
            retries: view.retries,
            resting: view.resting,
            stopping: view.stopping,
        }
    }
}

async fn job_status<Q: Queue, S: Store, R: Runner>(
    engine: &Dispatcher<Q, S, R>,
    job: &JobKey,
    view: View,
    look: &Look,
) -> Result<Option<JobStatus>, String> {
    let state = engine.store().state(job).await.map_err(|error| error.to_string())?;
    let waiting_for = match state {
        Some(JobState::Waiting { .. }) => Some(look.waits_for(job).await),
        _ => None,
    };
    let running = view.running.into_iter().find(|running| running.job == *job);
    Ok(state.map(|state| JobStatus { job: job.clone(), state, running, waiting_for }))
}

async fn cancel<Q: Queue, S: Store, R: Runner>(
    engine: &Dispatcher<Q, S, R>,
    job: &JobKey,
) -> Result<CancelStatus, String> {
    let store = engine.store();
    if store.state(job).await.map_err(|error| error.to_string())?.is_none() {
        return Ok(CancelStatus::Unknown);
    }
    // Noted first: a job that begins in between finds the note, one that has begun is on the board.
    let noted = store.cancel(job).await.map_err(|error| error.to_string())?;
    Ok(match noted {
        Cancelling::Over => CancelStatus::Over,
        Cancelling::Noted if engine.board().cancel(job) => CancelStatus::Told,
        Cancelling::Noted => CancelStatus::Noted,
    })
}

fn key(text: &str) -> JobKey {
    text.parse().unwrap_or_else(|_| JobKey::new(TENANT, text))
}
