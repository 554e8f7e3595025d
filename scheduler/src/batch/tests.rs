//! The embedded queue and store under the contract, and whole batches with a scripted runner.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Mutex,
    time::{Duration, Instant},
};

use egress::Egress;
use pool::{KindStatus, Tier, Want};
use tempfile::TempDir;
use worker::{Assignment, Cancelled, Ended, ErrorReport, JobResult, Outcome, Progress};

use super::*;
use crate::{
    contract::{self, QueueBed, StoreBed},
    key::{BodyDigest, JobKey},
    stop::{Stage, stop},
    store::{Begun, Store},
};

const BOOT: &str = "this boot";

/// A batch's files.
struct Bed {
    folder: TempDir,
    /// How many batches were made here.
    made: usize,
}

impl Bed {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), made: 0 }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn plan(&self, resume: bool) -> Plan {
        Plan {
            jobs: self.path("jobs"),
            results: self.path("results"),
            resume,
            defaults: defaults(),
            policies: Policies::default(),
            slots: 3,
        }
    }

    fn jobs(&self, lines: &[&str]) {
        fs::write(self.path("jobs"), lines.join("\n")).unwrap();
    }

    fn open(&self, resume: bool) -> Batch {
        Self::open_as(&self.plan(resume)).unwrap()
    }

    fn open_as(plan: &Plan) -> Result<Batch, BatchError> {
        // The former owner lets go in a thread of its own.
        let give_up = Instant::now() + Duration::from_secs(20);
        loop {
            match Batch::open(plan.clone()) {
                Err(BatchError::Journal(JournalError::InUse(_))) if Instant::now() < give_up => {
                    std::thread::yield_now();
                }
                opened => return opened,
            }
        }
    }

    /// Every result by its id; fails if a job has two.
    fn results(&self) -> BTreeMap<String, JobResult> {
        let mut results = BTreeMap::new();
        for line in fs::read_to_string(self.path("results")).unwrap().lines() {
            let result: JobResult = serde_json::from_str(line).unwrap();
            let id = result.id.clone();
            assert!(results.insert(id.clone(), result).is_none(), "{id} has two results");
        }
        results
    }

    fn outcomes(&self) -> Vec<(String, Outcome)> {
        self.results().into_iter().map(|(id, result)| (id, result.outcome)).collect()
    }

    /// The journal of a new batch with these jobs, or of the last one again.
    fn journal(&mut self, ids: Option<&[&str]>, boot: &str) -> (Arc<Journal>, EmbeddedQueue) {
        if let Some(ids) = ids {
            self.made += 1;
            let lines: Vec<_> = ids.iter().map(|id| job(id, "")).collect();
            fs::write(self.path(&format!("jobs-{}", self.made)), lines.join("\n")).unwrap();
        }
        let jobs = self.path(&format!("jobs-{}", self.made));
        let results = self.path(&format!("results-{}", self.made));
        let give_up = Instant::now() + Duration::from_secs(20);
        let journal = loop {
            match Journal::open(&results, boot, |_| {}) {
                Err(JournalError::InUse(_)) if Instant::now() < give_up => std::thread::yield_now(),
                opened => break Arc::new(opened.unwrap()),
            }
        };
        let file = JobsFile::open(&jobs, defaults()).unwrap();
        let left = file.take_in(&journal, &Policies::default()).unwrap();
        let queue = EmbeddedQueue::new(Arc::clone(&journal), file, left.kinds, left.waiting);
        (journal, queue)
    }
}

fn defaults() -> Defaults {
    Defaults { tier: Some(Tier::Chroot), image: None, tenant: None }
}

fn job(id: &str, more: &str) -> String {
    format!(r#"{{"schema_version":1,"id":"{id}","image":"minimal","command":["/bin/true"]{more}}}"#)
}

impl QueueBed for Bed {
    type Queue = Arc<EmbeddedQueue>;

    async fn with(&mut self, ids: &[&str]) -> Self::Queue {
        Arc::new(self.journal(Some(ids), BOOT).1)
    }

    async fn reopen(&mut self, queue: Self::Queue) -> Self::Queue {
        drop(queue);
        Arc::new(self.journal(None, BOOT).1)
    }
}

impl StoreBed for Bed {
    type Store = EmbeddedStore;

    async fn with(&mut self, ids: &[&str]) -> Self::Store {
        EmbeddedStore::new(self.journal(Some(ids), BOOT).0)
    }

    async fn reopen(&mut self, store: Self::Store) -> Self::Store {
        drop(store);
        EmbeddedStore::new(self.journal(None, BOOT).0)
    }
}

#[tokio::test]
async fn the_embedded_queue_keeps_the_contract() {
    contract::queue(&mut Bed::new()).await;
}

#[tokio::test]
async fn the_embedded_store_keeps_the_contract() {
    contract::store(&mut Bed::new()).await;
}

#[tokio::test]
async fn after_another_boot_what_may_have_been_given_away_counts_as_started() {
    let mut bed = Bed::new();
    let ids: Vec<_> = (0..200).map(|n| format!("job-{n}")).collect();
    let ids: Vec<_> = ids.iter().map(String::as_str).collect();
    let (journal, queue) = bed.journal(Some(&ids), BOOT);
    let queue = Arc::new(queue);
    let pulled = crate::queue::Queue::pull(&queue).await.unwrap().unwrap();
    drop((pulled, queue, journal));
    let (journal, queue) = bed.journal(None, BOOT);
    assert_eq!(
        EmbeddedStore::new(Arc::clone(&journal)).unfinished(500).await.unwrap(),
        [],
        "nothing had begun"
    );
    drop((journal, queue));
    let (journal, _queue) = bed.journal(None, "another boot");
    let unfinished = EmbeddedStore::new(Arc::clone(&journal)).unfinished(500).await.unwrap();
    assert!(unfinished.contains(&JobKey::new("local", "job-0")), "{unfinished:?}");
    assert!(!unfinished.contains(&JobKey::new("local", "job-199")), "no more than was reserved");
}

#[tokio::test]
async fn starts_that_grow_long_are_moved_into_the_database_and_none_is_lost() {
    let mut bed = Bed::new();
    let store = StoreBed::with(&mut bed, &["held", "again", "done"]).await;
    let begin = async |store: &EmbeddedStore, id: &str| match store
        .begin(&JobKey::new("local", id), &BodyDigest::of(id.as_bytes()))
        .await
        .unwrap()
    {
        Begun::Attempt(attempt) => attempt,
        other => panic!("{id}: {other:?}"),
    };
    begin(&store, "held").await;
    for _ in 0..50_000 {
        store.release(begin(&store, "again").await).await.unwrap();
    }
    let starts = journal::folder(&bed.path("results-1")).join("starts");
    assert!(fs::metadata(&starts).unwrap().len() > 1 << 20, "long enough to be moved");
    let report = ErrorReport::new("", "", "");
    let result = JobResult::never_started("done", "local", Outcome::Failed, report);
    store.finish(begin(&store, "done").await, &result).await.unwrap();
    // The next group comes after the starts of the former one were moved.
    store.cancel(&JobKey::new("local", "done")).await.unwrap();
    assert_eq!(fs::metadata(&starts).unwrap().len(), 0);

    let store = StoreBed::reopen(&mut bed, store).await;
    let held = begin(&store, "held").await;
    assert!(held.interrupted && held.number == 2, "{held:?}");
    let again = begin(&store, "again").await;
    assert!(!again.interrupted && again.number == 1, "{again:?}");
}

/// What a scripted runner does with one try of a job.
type Script = Box<dyn Fn(&Assignment, u32) -> Outcome + Send + Sync>;

/// Runs nothing and says what the script says.
struct Scripted {
    script: Script,
    /// Whether jobs that run for ever do so here.
    endless: bool,
    tries: Mutex<HashMap<String, u32>>,
    expected: Mutex<Vec<usize>>,
}

impl Scripted {
    fn new(script: impl Fn(&Assignment, u32) -> Outcome + Send + Sync + 'static) -> Self {
        Self { script: Box::new(script), endless: true, tries: Mutex::default(), expected: Mutex::default() }
    }

    /// Sees even those to their end that run for ever.
    fn patient(script: impl Fn(&Assignment, u32) -> Outcome + Send + Sync + 'static) -> Self {
        Self { endless: false, ..Self::new(script) }
    }

    fn tries(&self, id: &str) -> u32 {
        self.tries.lock().unwrap().get(id).copied().unwrap_or(0)
    }
}

impl Runner for Scripted {
    async fn work(&self, job: &Assignment, _: Progress, mut cancelled: Cancelled) -> Ended {
        let tried = {
            let mut tries = self.tries.lock().unwrap();
            let tried = tries.entry(job.id.clone()).or_default();
            *tried += 1;
            *tried
        };
        let mut outcome = (self.script)(job, tried);
        if self.endless && job.command.iter().any(|word| word == "forever") {
            cancelled.asked().await;
            outcome = Outcome::Cancelled;
        }
        tokio::task::yield_now().await;
        let mut result =
            JobResult::never_started(&job.id, &job.tenant, outcome, ErrorReport::new("scripted", "", ""));
        result.attempt = job.attempt;
        result.phases.run_us = u64::from(outcome != Outcome::InfraError);
        result.egress = Some(Egress { made: 1, ..Egress::default() });
        Ended::without_sandbox(result)
    }

    async fn try_one(&self, _: &Want) -> Result<(), ErrorReport> {
        Ok(())
    }

    fn expect(&self, _: &Want, jobs: usize) {
        self.expected.lock().unwrap().push(jobs);
    }

    fn standing(&self) -> Vec<KindStatus> {
        Vec::new()
    }
}

/// Runs a batch to where it ends by itself.
async fn run(batch: Batch, runner: Scripted) -> (Result<(), BatchError>, Scripted, Tally) {
    let running = batch.with(runner);
    let (stopper, stop) = stop();
    let ran = running.run(&stopper, &stop).await;
    let (runner, tally) = running.close().await.map_err(|(_, error)| error).unwrap();
    (ran, runner, tally)
}

#[tokio::test]
async fn every_line_gets_one_result_whatever_it_holds() {
    let bed = Bed::new();
    let twin = job("one", "");
    bed.jobs(&[
        &twin,
        "no json",
        "",
        &twin,
        r#"{"schema_version":1,"command":["a"]}"#,
        &job("bad id", ""),
        "  ",
    ]);
    let (ran, _, tally) = run(bed.open(false), Scripted::new(|_, _| Outcome::Succeeded)).await;
    ran.unwrap();
    let rejected = ["line-2", "line-4", "line-5", "line-6"].map(|id| (id.to_owned(), Outcome::Rejected));
    let expected: Vec<_> = rejected.into_iter().chain([("one".to_owned(), Outcome::Succeeded)]).collect();
    assert_eq!(bed.outcomes(), expected);
    assert_eq!(tally.total(), 5);
    let results = bed.results();
    let error = |id: &str| {
        let error = results[id].error.clone().unwrap();
        format!("{}: {}", error.what, error.why)
    };
    assert!(
        error("line-2").contains("line 2 of") && error("line-2").contains("column 2"),
        "{}",
        error("line-2")
    );
    assert!(error("line-4").contains("line 1 has the same id"), "{}", error("line-4"));
    assert!(error("line-5").contains("missing field `image`"), "{}", error("line-5"));
    assert!(error("line-6").contains("id: it is not"), "{}", error("line-6"));
    assert!(
        !journal::folder(&bed.path("results")).exists(),
        "a batch that is over leaves its results and no more"
    );
}

#[tokio::test]
async fn the_same_id_of_two_tenants_is_two_jobs() {
    let bed = Bed::new();
    bed.jobs(&[&job("one", r#","tenant":"a""#), &job("one", r#","tenant":"b""#)]);
    run(bed.open(false), Scripted::new(|_, _| Outcome::Succeeded)).await.0.unwrap();
    let text = fs::read_to_string(bed.path("results")).unwrap();
    assert_eq!(text.lines().filter(|line| line.contains(r#""outcome":"succeeded""#)).count(), 2, "{text}");
}

#[tokio::test(start_paused = true)]
async fn a_failure_of_ours_is_tried_on_other_sandboxes_and_never_charged_to_the_job() {
    let bed = Bed::new();
    bed.jobs(&[&job("unlucky", r#","max_attempts":1"#), &job("hopeless", ""), &job("fails", "")]);
    let runner = Scripted::new(|job, tried| match (job.id.as_str(), tried) {
        ("unlucky", 3) => Outcome::Succeeded,
        ("unlucky" | "hopeless", _) => Outcome::InfraError,
        _ => Outcome::Failed,
    });
    let (ran, runner, _) = run(bed.open(false), runner).await;
    ran.unwrap();
    let results = bed.results();
    assert_eq!((results["unlucky"].outcome, results["unlucky"].attempt), (Outcome::Succeeded, 1));
    assert!(results["unlucky"].notes[0].contains("sandbox 3"), "{:?}", results["unlucky"].notes);
    assert_eq!((results["hopeless"].outcome, runner.tries("hopeless")), (Outcome::InfraError, 3));
    assert_eq!(
        (results["fails"].outcome, runner.tries("fails")),
        (Outcome::Failed, 1),
        "a job's own failure stands"
    );
    let made = ["unlucky", "hopeless", "fails"].map(|id| results[id].egress.as_ref().unwrap().made);
    assert_eq!(made, [3, 3, 1], "what it reached before counts");
}

#[tokio::test(start_paused = true)]
async fn a_lost_sandbox_is_repeated_only_for_a_job_that_allows_it() {
    let bed = Bed::new();
    bed.jobs(&[&job("once", ""), &job("again", r#","idempotent":true"#)]);
    let runner = Scripted::new(|_, tried| if tried == 1 { Outcome::SandboxLost } else { Outcome::Succeeded });
    let (ran, runner, _) = run(bed.open(false), runner).await;
    ran.unwrap();
    assert_eq!(
        bed.outcomes(),
        [("again".to_owned(), Outcome::Succeeded), ("once".to_owned(), Outcome::SandboxLost)]
    );
    assert_eq!((runner.tries("once"), runner.tries("again")), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn a_host_without_sandboxes_does_not_spend_the_whole_batch() {
    let bed = Bed::new();
    let lines: Vec<_> = (0..100).map(|n| job(&format!("job-{n}"), "")).collect();
    bed.jobs(&lines.iter().map(String::as_str).collect::<Vec<_>>());
    let (ran, ..) = run(bed.open(false), Scripted::new(|_, _| Outcome::InfraError)).await;
    assert!(matches!(ran, Err(BatchError::Dispatch(DispatchError::Infrastructure { .. }))), "{ran:?}");
    assert!(bed.results().len() < 50, "{} were spent", bed.results().len());
    run(bed.open(true), Scripted::new(|_, _| Outcome::Succeeded)).await.0.unwrap();
    assert_eq!(bed.results().len(), 100, "the others run when the host is well again");
}

#[tokio::test]
async fn a_batch_that_others_run_keeps_its_names_and_is_not_taken_up_for_anybody_else() {
    let bed = Bed::new();
    bed.jobs(&[&job("one", ""), r#"{"schema_version":1,"image":"minimal","command":["x"]}"#]);
    let for_whom = |tenant: Option<&str>, resume| {
        let defaults = Defaults { tenant: tenant.map(str::to_owned), ..defaults() };
        Bed::open_as(&Plan { defaults, ..bed.plan(resume) })
    };
    let names = |batch: &Batch| {
        let read = batch.journal.read(|read| {
            let ids = read.open_table(journal::IDS)?;
            Ok(redb::ReadableTable::iter(&ids)?.map(|row| row.unwrap().0.value().to_owned()).collect())
        });
        let names: Vec<String> = read.unwrap();
        names
    };
    let batch = for_whom(Some("acme"), false).unwrap();
    let first = names(&batch);
    assert!(first.contains(&"acme/one".to_owned()), "{first:?}");
    assert!(first.iter().any(|name| name.ends_with("-line-2") && name.len() > "acme/-line-2".len()));
    batch.close().await.unwrap();
    for other in [None, Some("other")] {
        let error = for_whom(other, true).unwrap_err();
        assert!(matches!(error, BatchError::Intake(IntakeError::Elsewhere(_))), "{error}");
    }
    let batch = for_whom(Some("acme"), true).unwrap();
    assert_eq!(names(&batch), first);
    batch.close().await.unwrap();
}

#[tokio::test]
async fn a_stopped_batch_goes_on_where_it_was() {
    let bed = Bed::new();
    let mut lines = vec![job("again", r#","idempotent":true"#), job("once", "")];
    for line in &mut lines {
        *line = line.replace("/bin/true", "forever");
    }
    lines.extend((0..50).map(|n| job(&format!("job-{n}"), "")));
    bed.jobs(&lines.iter().map(String::as_str).collect::<Vec<_>>());
    let running = bed.open(false).with(Scripted::new(|_, _| Outcome::Succeeded));
    let (stopper, stop) = stop();
    let (ran, ()) = tokio::join!(running.run(&stopper, &stop), async {
        while running.board().jobs().len() < 2 {
            tokio::task::yield_now().await;
        }
        assert_eq!((stopper.more(), stopper.more()), (Stage::Draining, Stage::Aborting));
    });
    ran.unwrap();
    running.close().await.map_err(|(_, error)| error).unwrap();
    let first = bed.results();
    assert_eq!(first["once"].outcome, Outcome::Cancelled, "it may have started, so its end stands");
    assert!(!first.contains_key("again"), "it may run again, so it will");
    let (ran, runner, tally) = run(bed.open(true), Scripted::patient(|_, _| Outcome::Succeeded)).await;
    ran.unwrap();
    assert_eq!((bed.results().len(), tally.total()), (52, 52));
    assert_eq!(bed.results()["again"].attempt, 1, "ending mayfly is not charged to the job");
    assert!(first.keys().all(|id| runner.tries(id) == 0), "nothing is run twice");
}

#[tokio::test]
async fn what_had_begun_when_mayfly_died_runs_again_only_if_that_does_no_harm() {
    let bed = Bed::new();
    bed.jobs(&[&job("once", ""), &job("again", r#","idempotent":true"#), &job("fresh", "")]);
    let batch = bed.open(false);
    for id in ["once", "again"] {
        batch.journal.begin(&JobKey::new("local", id)).unwrap().unwrap();
    }
    // No close: as if it had been killed.
    drop(batch);
    let (ran, runner, _) = run(bed.open(true), Scripted::new(|_, _| Outcome::Succeeded)).await;
    ran.unwrap();
    let results = bed.results();
    assert_eq!((results["once"].outcome, results["once"].attempt), (Outcome::SandboxLost, 1));
    assert_eq!((results["again"].outcome, results["again"].attempt), (Outcome::Succeeded, 2));
    assert_eq!((results["fresh"].outcome, results["fresh"].attempt), (Outcome::Succeeded, 1));
    assert_eq!(runner.tries("once"), 0);
}

#[tokio::test]
async fn results_that_are_there_are_neither_lost_nor_written_again() {
    let bed = Bed::new();
    bed.jobs(&[&job("one", ""), &job("two", "")]);
    run(bed.open(false), Scripted::new(|_, _| Outcome::Succeeded)).await.0.unwrap();
    let whole = fs::read(bed.path("results")).unwrap();
    let error = Batch::open(bed.plan(false)).unwrap_err();
    assert!(matches!(error, BatchError::ResultsExist(_)), "{error}");
    // The second line is torn: only its job runs again.
    let first = whole.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    fs::write(bed.path("results"), &whole[..first + 7]).unwrap();
    let kept = bed.plan(true);
    let batch = Batch::open(kept).unwrap();
    assert_eq!(batch.left(), 1);
    let (ran, runner, _) = run(batch, Scripted::new(|_, _| Outcome::Failed)).await;
    ran.unwrap();
    let text = fs::read(bed.path("results")).unwrap();
    assert_eq!(text[..first], whole[..first]);
    assert_eq!(bed.results().len(), 2);
    assert_eq!(runner.tries("one") + runner.tries("two"), 1);
}

#[tokio::test]
async fn a_batch_belongs_to_one_process_and_to_one_jobs_file() {
    let bed = Bed::new();
    bed.jobs(&[&job("one", "")]);
    let batch = bed.open(false);
    let error = Batch::open(bed.plan(true)).unwrap_err();
    assert!(matches!(error, BatchError::Journal(JournalError::InUse(_))), "{error}");
    drop(batch);
    drop(bed.open(true));
    bed.jobs(&[&job("another", "")]);
    let give_up = Instant::now() + Duration::from_secs(20);
    let error = loop {
        match Batch::open(bed.plan(true)).unwrap_err() {
            BatchError::Journal(JournalError::InUse(_)) if Instant::now() < give_up => {
                std::thread::yield_now();
            }
            error => break error,
        }
    };
    assert!(matches!(error, BatchError::Intake(IntakeError::Changed(_))), "{error}");
}

#[tokio::test]
async fn the_runner_hears_how_many_jobs_of_a_kind_come() {
    let bed = Bed::new();
    bed.jobs(&[&job("one", ""), &job("two", ""), "no job", &job("three", r#","limits":{"memory":"64MiB"}"#)]);
    let (ran, runner, _) = run(bed.open(false), Scripted::new(|_, _| Outcome::Succeeded)).await;
    ran.unwrap();
    let mut expected = runner.expected.lock().unwrap().clone();
    expected.truncate(2);
    expected.sort_unstable();
    assert_eq!(expected, [1, 2]);
}
