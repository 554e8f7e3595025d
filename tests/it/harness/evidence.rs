//! What became of a cluster's jobs, as those see it who are not mayfly: what was told on the broker, and what the store has.

use std::{
    collections::{HashMap, HashSet},
    fs,
    time::{Duration, Instant},
};

use lapin::{
    Channel, Connection, ConnectionProperties,
    options::{BasicGetOptions, QueueBindOptions, QueueDeclareOptions},
    types::FieldTable,
};
use serde_json::Value;
use worker::{JobResult, Outcome};

use super::{Cluster, Host, Node, eventually};

/// The queue into which every result is copied once [`Cluster::listen`] was called.
pub(crate) const HEARD: &str = "heard";
/// How long nothing may become of any job.
const PATIENCE: Duration = Duration::from_secs(60);
/// The names of what hosts keep in the store.
const PREFIX: &str = "mayfly";

/// What became of the jobs that the broker took.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Evidence {
    pub(crate) accepted: usize,
    /// By how their results say that they ended.
    pub(crate) outcomes: HashMap<Outcome, usize>,
    /// Jobs whose result was told, or is kept, in more than one form.
    pub(crate) duplicated: Vec<String>,
    /// Results that were told that nobody asked for.
    pub(crate) strange: Vec<String>,
    /// Messages that said again what had been said.
    pub(crate) repeated: usize,
    /// Jobs of which the first attempt was not the last.
    pub(crate) recovered: usize,
}

impl Cluster {
    /// Lets the broker keep a copy of every result that is told from now on.
    pub(crate) fn listen(&self) {
        self.runtime.block_on(async {
            let (_connection, channel) = self.channel().await;
            let none = FieldTable::default;
            channel.queue_declare(HEARD.into(), QueueDeclareOptions::durable(), none()).await.unwrap();
            let all = QueueBindOptions::default();
            channel.queue_bind(HEARD.into(), "mayfly.results".into(), "#".into(), all, none()).await.unwrap();
        });
    }

    /// How many messages a queue has for whoever gets them.
    pub(crate) fn depth(&self, queue: &str) -> u64 {
        self.runtime.block_on(async {
            let (_connection, channel) = self.channel().await;
            let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::durable() };
            let declared = channel.queue_declare(queue.into(), options, FieldTable::default()).await.unwrap();
            u64::from(declared.message_count())
        })
    }

    /// Takes what was told, in the order of the telling.
    pub(crate) fn heard(&self) -> Vec<JobResult> {
        self.runtime.block_on(async {
            let (_connection, channel) = self.channel().await;
            let (mut heard, mut told) = (Vec::new(), HashMap::new());
            let no_ack = BasicGetOptions { no_ack: true };
            while let Some(got) = channel.basic_get(HEARD.into(), no_ack).await.unwrap() {
                let result: JobResult = serde_json::from_slice(&got.data).unwrap();
                let named = got.properties.message_id().as_ref().unwrap().as_str().to_owned();
                let epoch = named.strip_prefix(&format!("{}:", result.id)).map(str::parse::<u64>);
                assert!(matches!(epoch, Some(Ok(_))), "{named} does not name an end of {}", result.id);
                // Producers tell repetitions by it.
                let first: &Vec<u8> = told.entry(named).or_insert_with(|| got.data.clone());
                assert_eq!(first, &got.data);
                heard.push(result);
            }
            heard
        })
    }

    pub(crate) async fn channel(&self) -> (Connection, Channel) {
        let connection = Connection::connect(&self.url(), ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        (connection, channel)
    }

    /// The results that the store has of these jobs.
    fn kept(&self, ids: &[String]) -> HashMap<String, JobResult> {
        let mut store = self.redis();
        let key = |id: &String| format!("{PREFIX}:{{{}}}:result", self.key(id));
        let ask = |id: &String| redis::cmd("GET").arg(key(id)).query::<Option<Vec<u8>>>(&mut store).unwrap();
        ids.iter()
            .map(ask)
            .zip(ids)
            .filter_map(|(json, id)| Some((id.clone(), serde_json::from_slice(&json?).unwrap())))
            .collect()
    }

    fn redis(&self) -> redis::Connection {
        redis::Client::open(self.store.url()).unwrap().get_connection().unwrap()
    }

    /// The jobs that these hosts have begun and not yet ended.
    pub(crate) fn in_flight<'h>(&self, hosts: impl IntoIterator<Item = &'h Host>) -> usize {
        let known: Vec<String> =
            hosts.into_iter().filter_map(|host| instance(host.running.as_ref()?.pid())).collect();
        self.owned_by(&known)
    }

    /// The same by the names of the processes, which may be dead.
    pub(crate) fn owned_by(&self, instances: &[String]) -> usize {
        let entries: Vec<String> =
            redis::cmd("HVALS").arg(format!("{PREFIX}:begun")).query(&mut self.redis()).unwrap();
        let owner = |entry: &String| entry.split(' ').next().unwrap().to_owned();
        entries.iter().map(owner).filter(|owner| instances.contains(owner)).count()
    }

    /// The name of the process that a host is now.
    pub(crate) fn instance_of(host: &Host) -> String {
        instance(host.running().pid()).expect("it has a mark")
    }

    /// How many messages of this cluster somebody has got and not yet done with.
    pub(crate) fn held(&self) -> u64 {
        // Channels are asked; what queues tell is some seconds old.
        let list = self.broker.ctl(&["list_channels", "vhost", "messages_unacknowledged"]).unwrap();
        let of = |line: &str| line.strip_prefix(&self.vhost)?.trim().parse::<u64>().ok();
        list.lines().filter_map(of).sum()
    }

    /// Waits until each of these jobs has its result, was told, and is said to be over; then says what became of them.
    ///
    /// Checks that nothing was lost, that no job has a second result, and that the broker and the store hold no more work.
    #[track_caller]
    pub(crate) fn prove(&self, accepted: &[String]) -> Evidence {
        let mut left = accepted.to_vec();
        let (mut kept, mut progress) = (HashMap::new(), Instant::now());
        while !left.is_empty() {
            let before = left.len();
            kept.extend(self.kept(&left));
            left.retain(|id| !kept.contains_key(id));
            if left.len() < before {
                progress = Instant::now();
            }
            assert!(progress.elapsed() < PATIENCE, "{} jobs are lost: {:?}", left.len(), &left[..1]);
            std::thread::sleep(Duration::from_millis(20));
        }
        eventually("no job is taken to be under way any more", || {
            let begun: u64 =
                redis::cmd("HLEN").arg(format!("{PREFIX}:begun")).query(&mut self.redis()).unwrap();
            (begun == 0).then_some(())
        });
        // The store has it before it is told.
        let (mut unheard, mut heard) =
            (accepted.iter().map(String::as_str).collect::<HashSet<_>>(), Vec::new());
        eventually("every result was told", || {
            let more = self.heard();
            unheard.retain(|id| more.iter().all(|result| result.id != *id));
            heard.extend(more);
            unheard.is_empty().then_some(())
        });
        weigh(&kept, &heard)
    }
}

/// Compares what was told with what is kept.
fn weigh(kept: &HashMap<String, JobResult>, heard: &[JobResult]) -> Evidence {
    let mut evidence = Evidence {
        accepted: kept.len(),
        recovered: kept.values().filter(|result| result.attempt > 1).count(),
        ..Evidence::default()
    };
    for result in kept.values() {
        *evidence.outcomes.entry(result.outcome).or_default() += 1;
    }
    let mut told = HashSet::new();
    for result in heard {
        match kept.get(&result.id) {
            None => evidence.strange.push(result.id.clone()),
            Some(kept) if kept != result => evidence.duplicated.push(result.id.clone()),
            Some(_) if !told.insert(&result.id) => evidence.repeated += 1,
            Some(_) => {}
        }
    }
    evidence
}

impl Evidence {
    /// Each job has one result, and nothing was told of any other.
    #[track_caller]
    pub(crate) fn is_clean(&self) {
        assert!(self.duplicated.is_empty() && self.strange.is_empty(), "{self:?}");
    }

    /// How many jobs ended so.
    pub(crate) fn ended(&self, outcome: Outcome) -> usize {
        self.outcomes.get(&outcome).copied().unwrap_or(0)
    }
}

/// The name of a live or dead mayfly process, as its mark has it.
fn instance(pid: u32) -> Option<String> {
    let marks = fs::read_dir(Node::run_dir().join("instances")).ok()?.flatten();
    let owner = |path: std::path::PathBuf| -> Option<Value> {
        serde_json::from_slice(&fs::read(path.join("owner")).ok()?).ok()
    };
    let ours = |entry: &fs::DirEntry| owner(entry.path()).is_some_and(|owner| owner["pid"] == pid);
    marks.into_iter().find(ours)?.file_name().into_string().ok()
}
