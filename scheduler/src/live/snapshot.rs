//! All that a live process shows of itself at one moment: what its page draws, and what `mayfly top` does.
//!
//! Its size is bounded, whatever runs and waits, and no text in it holds a control character: names and reasons have been
//! through `text` before anybody gets to show them.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use pool::{KindStatus, Tier};
use serde::{Deserialize, Serialize};

use super::{reasons, text};
use crate::{
    board::{Board, EndedJob, PhaseNow, RunningJob},
    control::{Identity, LaneStatus},
    key::JobKey,
    metrics::View,
    ward::{Resting, Tested},
};

/// Jobs that are listed.
const RUNNING: usize = 64;
/// Lanes that are listed.
const WAITING: usize = 64;
/// Tenants that are listed.
const TENANTS: usize = 64;
/// Kinds of sandboxes that are listed for a tier.
const KINDS: usize = 16;
/// Letters of a reason.
const REASON: usize = 300;
/// Letters of a name.
const NAME: usize = 128;

/// One moment.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Snapshot {
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// Who shows it.
    pub who: Identity,
    /// For how long it has run.
    pub up_us: u64,
    /// Why no job would be run now; empty if one would.
    pub unready: Vec<String>,
    /// Whether no more jobs are started.
    pub stopping: bool,
    /// Jobs at once.
    pub slots: usize,
    /// The tiers.
    pub tiers: Vec<TierNow>,
    /// The jobs that run, longest first.
    pub running: Vec<RunningJob>,
    /// How many run in all.
    pub running_in_all: usize,
    /// What waits, most first.
    pub waiting: Vec<LaneStatus>,
    /// How many jobs wait in all.
    pub waiting_in_all: u64,
    /// Jobs that ended in each of the last seconds, this one last.
    pub per_second: Vec<u32>,
    /// Jobs that have their result.
    pub ended: u64,
    /// How many ended how.
    pub outcomes: Vec<(String, u64)>,
    /// The share of jobs for which a sandbox waited.
    pub warm_share: Option<f64>,
    /// How often a job was given another sandbox.
    pub retries: u64,
    /// How long phases took lately.
    pub phases: Vec<PhaseNow>,
    /// The tenants, busiest first.
    pub tenants: Vec<TenantNow>,
    /// How many there are in all.
    pub tenants_in_all: usize,
    /// The latest jobs, newest first.
    pub recent: Vec<EndedJob>,
    /// The latest that failed, newest first.
    pub failures: Vec<EndedJob>,
}

/// A tier's sandboxes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TierNow {
    /// Which.
    pub tier: Tier,
    /// Whether jobs of it are run here.
    pub offered: bool,
    /// Why no sandbox of it can be made now.
    pub resting: Option<Resting>,
    /// What the last selftest said of it.
    #[serde(default)]
    pub tested: Option<Tested>,
    /// Its kinds, most sandboxes first.
    pub kinds: Vec<KindStatus>,
}

/// A tenant's jobs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenantNow {
    /// Its name.
    pub tenant: String,
    /// Those that run here.
    pub running: u64,
    /// How many of them may.
    pub most: Option<u32>,
    /// Those that wait.
    pub waiting: u64,
    /// Those that ended here.
    pub ended: u64,
    /// Those of them that failed.
    pub failed: u64,
}

impl Snapshot {
    /// What `view` and `board` hold.
    pub(crate) fn of(view: View, board: &Board, who: Identity, up: Duration) -> Self {
        let tally = board.tally();
        let mut waiting: Vec<LaneStatus> = reasons::lanes(&view).collect();
        waiting.sort_by_key(|lane| std::cmp::Reverse(lane.jobs));
        let (waiting_in_all, running_in_all) =
            (waiting.iter().map(|lane| lane.jobs).sum(), view.running.len());
        let mut tenants = tenants(&view, board);
        let tenants_in_all = tenants.len();
        tenants.truncate(TENANTS);
        waiting.truncate(WAITING);
        // Held to the end: the board has one lock for it.
        let recent = board.recent();
        let [ended, failures] = recent.ended();
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let unready = view.unready();
        Self {
            at_ms: at.as_millis() as u64,
            who,
            up_us: up.as_micros() as u64,
            unready: unready.iter().map(|why| text::line(why, REASON)).collect(),
            stopping: view.stopping,
            slots: view.slots,
            tiers: tiers(&view),
            running: view.running.into_iter().take(RUNNING).map(tame_job).collect(),
            running_in_all,
            waiting: waiting.into_iter().map(tame_lane).collect(),
            waiting_in_all,
            per_second: recent.per_second(),
            ended: tally.total(),
            outcomes: tally.outcomes().map(|(outcome, count)| (outcome.name().to_owned(), count)).collect(),
            warm_share: tally.warm_share(),
            retries: view.retries,
            phases: recent.phases(),
            tenants,
            tenants_in_all,
            recent: ended,
            failures,
        }
    }
}

fn tiers(view: &View) -> Vec<TierNow> {
    let of = |tier: Tier| {
        let own = view.kinds.iter().filter(|kind| kind.tier == tier);
        let mut kinds: Vec<_> =
            own.map(|kind| KindStatus { image: text::line(&kind.image, NAME), ..kind.clone() }).collect();
        kinds.sort_by_key(|kind| std::cmp::Reverse(kind.leased + kind.ready + kind.making));
        kinds.truncate(KINDS);
        let resting = view.resting.iter().find(|resting| resting.tier == tier);
        let resting = resting.map(|it| Resting { why: text::line(&it.why, REASON), ..it.clone() });
        let tested = view.tested.iter().find(|tested| tested.tier == tier);
        let tested = tested.map(|it| Tested { said: text::line(&it.said, REASON), ..it.clone() });
        TierNow { tier, offered: view.tiers.contains(&tier), resting, tested, kinds }
    };
    Tier::ALL.into_iter().map(of).collect()
}

fn tenants(view: &View, board: &Board) -> Vec<TenantNow> {
    let mut all = BTreeMap::<String, TenantNow>::new();
    for lane in &view.waiting {
        let Some(tenant) = &lane.tenant else { continue };
        let now = all.entry(tenant.clone()).or_default();
        now.waiting += lane.jobs;
        now.most = lane.most;
    }
    for job in &view.running {
        all.entry(job.job.tenant.clone()).or_default().running += 1;
    }
    for (tenant, of) in board.recent().tenants() {
        let now = all.entry(tenant.clone()).or_default();
        (now.ended, now.failed) = (of.ended, of.failed);
    }
    let named = |(tenant, now): (String, TenantNow)| TenantNow { tenant: text::line(&tenant, NAME), ..now };
    let mut all: Vec<_> = all.into_iter().map(named).collect();
    all.sort_by_key(|now| std::cmp::Reverse((now.running + now.waiting, now.ended)));
    all
}

pub(super) fn tame_job(job: RunningJob) -> RunningJob {
    RunningJob {
        job: JobKey::new(text::line(&job.job.tenant, NAME), text::line(&job.job.id, NAME)),
        image: text::line(&job.image, NAME),
        waits_for: job.waits_for.map(|why| text::line(&why, REASON)),
        ..job
    }
}

fn tame_lane(lane: LaneStatus) -> LaneStatus {
    LaneStatus {
        tenant: lane.tenant.map(|tenant| text::line(&tenant, NAME)),
        why: text::line(&lane.why, REASON),
        ..lane
    }
}

#[cfg(test)]
mod tests {
    use pool::Limits;
    use worker::Phase;

    use super::*;
    use crate::queue::Waiting;

    #[test]
    fn a_moment_is_bounded_and_holds_no_control_character() {
        let evil = "\u{1b}]0;owned\u{7}<script>".repeat(40);
        let running = |number: u64| RunningJob {
            job: JobKey::new(evil.as_str(), format!("{evil}{number}")),
            tier: Tier::Vm,
            phase: Phase::Checkout,
            attempt: 1,
            elapsed_us: number,
            image: evil.clone(),
            times_us: vec![(Phase::Checkout, 1)],
            waits_for: Some(evil.clone()),
        };
        let waiting = |number: u64| Waiting {
            tenant: Some(format!("{number}{evil}")),
            tier: Some(Tier::Vm),
            jobs: number,
            ..Waiting::default()
        };
        let kind = KindStatus {
            tier: Tier::Vm,
            image: evil.clone(),
            limits: Limits::default(),
            ready: 1,
            target: 1,
            making: 1,
            leased: 1,
            quarantined: 1,
            waiting: 1,
            refill_us: 1,
        };
        let resting = Resting { tier: Tier::Vm, why: evil.clone(), rests_us: 1, tries: 1, again_us: 1 };
        let view = View {
            slots: 5000,
            running: (0..5000).map(running).collect(),
            waiting: (0..5000).map(waiting).collect(),
            kinds: vec![kind; 5000],
            resting: vec![resting],
            tested: vec![Tested { tier: Tier::Vm, at_ms: 1, said: evil.clone(), holds: false }],
            tiers: vec![Tier::Vm],
            ..View::default()
        };
        let who = Identity { verb: "serve".into(), ..Identity::default() };
        let snapshot = Snapshot::of(view, &Board::default(), who, Duration::ZERO);
        assert_eq!((snapshot.running_in_all, snapshot.tenants_in_all), (5000, 5001));
        assert_eq!(snapshot.waiting_in_all, (0..5000).sum::<u64>());
        assert_eq!(snapshot.waiting[0].jobs, 4999, "most first");
        let json = serde_json::to_string(&snapshot).unwrap();
        assert!(json.len() < 256 * 1024, "{}", json.len());
        assert!(!json.contains("\\u00"), "JSON would write a control character so");
        assert!(json.contains("^[]0;owned^G<script>"), "it is seen what it was");
        serde_json::from_str::<Snapshot>(&json).unwrap();
    }
}
