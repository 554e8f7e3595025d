//! Why a job waits, in the words that its owner reads. Pure: everything is in the view.

use pool::KindStatus;
use worker::Phase;

use crate::{board::RunningJob, control::LaneStatus, metrics::View, queue::Waiting, ward::Resting};

/// All that waits, with why.
pub(crate) fn lanes(view: &View) -> impl Iterator<Item = LaneStatus> + '_ {
    let waiting = view.waiting.iter().filter(|lane| lane.jobs > 0).map(|lane| LaneStatus {
        tenant: lane.tenant.clone(),
        tier: lane.tier,
        high: lane.high,
        jobs: lane.jobs,
        why: of_lane(lane, view),
    });
    let parked = view.parked.iter().filter(|(_, jobs)| *jobs > 0).map(|(tier, jobs)| LaneStatus {
        tenant: None,
        tier: Some(*tier),
        high: false,
        jobs: *jobs,
        why: format!("no host offers tier {tier}"),
    });
    waiting.chain(parked)
}

/// Why a tenant's job waits, of which no more is known than that.
pub(crate) fn of_one(tenant: &str, view: &View) -> String {
    let own = |lane: &&Waiting| lane.jobs > 0 && lane.tenant.as_deref().is_none_or(|it| it == tenant);
    view.waiting
        .iter()
        .find(own)
        .map_or_else(|| of_lane(&Waiting::default(), view), |lane| of_lane(lane, view))
}

/// What stops it first is said: one reason, and the one that would still stop it if the others were gone.
fn of_lane(lane: &Waiting, view: &View) -> String {
    if view.stopping {
        return "no more jobs are started: it is stopping".to_owned();
    }
    if let Some(resting) = view.resting.iter().find(|resting| Some(resting.tier) == lane.tier) {
        let Resting { tier, why, again_us, .. } = resting;
        if resting.is_refused() {
            return format!("tier {tier} is refused here until a selftest finds that it holds: {why}");
        }
        return format!("tier {tier} rests, the next try in {}: {why}", about(*again_us));
    }
    if let Some(most) = lane.most.filter(|most| lane.running >= *most) {
        return format!("tenant cap {}/{most}", lane.running);
    }
    if let Some(trouble) = view.trouble().into_iter().next() {
        return trouble;
    }
    let (slots, running) = (view.slots, view.running.len());
    if running < slots {
        return "its turn comes next".to_owned();
    }
    let without: Vec<_> = view.running.iter().filter_map(|job| job.waits_for.as_deref()).collect();
    match without.first() {
        Some(why) => {
            format!("all {slots} slots are taken, {} of them without a sandbox: {why}", without.len())
        }
        None => format!("all {slots} slots are taken"),
    }
}

/// What a job waits for that has its slot; `None`: it does not wait.
pub(crate) fn of_sandbox(job: &RunningJob, kinds: &[KindStatus]) -> Option<String> {
    if job.phase != Phase::Checkout {
        return None;
    }
    let tier = job.tier;
    let same = kinds.iter().filter(|kind| kind.tier == tier && is_of(&kind.image, &job.image));
    let (making, refill) =
        same.fold((0, 0), |(making, refill), kind| (making + kind.making, refill.max(kind.refill_us)));
    Some(match making {
        0 => {
            format!("no clean {tier} sandbox, and none is being made: the host has no room for one more now")
        }
        _ => format!("no clean {tier} sandbox, {making} being made, about {}", about(refill)),
    })
}

/// Whether an image, which has its digest, is the one that was asked for.
fn is_of(image: &str, asked: &str) -> bool {
    image == asked || image.split_once('@').is_some_and(|(name, _)| name == asked)
}

/// A time that is not known better.
fn about(us: u64) -> String {
    match us {
        0..1_000_000 => format!("{} ms", us.div_ceil(1000).max(1)),
        _ => format!("{} s", (us + 500_000) / 1_000_000),
    }
}

#[cfg(test)]
mod tests {
    use pool::{Limits, Tier};

    use super::*;
    use crate::JobKey;

    fn checkout(tier: Tier) -> RunningJob {
        RunningJob {
            job: JobKey::new("acme", "one"),
            tier,
            phase: Phase::Checkout,
            attempt: 1,
            elapsed_us: 1,
            image: "base".into(),
            times_us: Vec::new(),
            waits_for: None,
        }
    }

    fn kind(image: &str, making: usize, refill_us: u64) -> KindStatus {
        KindStatus {
            tier: Tier::Vm,
            image: image.into(),
            limits: Limits::default(),
            ready: 0,
            target: 0,
            making,
            leased: 0,
            quarantined: 0,
            waiting: 1,
            refill_us,
        }
    }

    #[test]
    fn a_job_without_a_sandbox_hears_how_many_are_made_and_how_long_that_takes() {
        let kinds =
            [kind("base@sha256:1", 2, 2_900_000), kind("other@sha256:2", 7, 1), kind("base", 0, 1_000)];
        let why = of_sandbox(&checkout(Tier::Vm), &kinds).unwrap();
        assert_eq!(why, "no clean vm sandbox, 2 being made, about 3 s");
        let why = of_sandbox(&checkout(Tier::Vm), &[kind("base@sha256:1", 1, 12_300)]).unwrap();
        assert_eq!(why, "no clean vm sandbox, 1 being made, about 13 ms");
        let why = of_sandbox(&checkout(Tier::Docker), &kinds).unwrap();
        assert!(why.starts_with("no clean docker sandbox, and none is being made"), "{why}");
        let runs = RunningJob { phase: Phase::Run, ..checkout(Tier::Vm) };
        assert_eq!(of_sandbox(&runs, &kinds), None, "it has one");
    }

    #[test]
    fn a_job_without_a_slot_hears_what_stops_it_first() {
        let lane = Waiting { tier: Some(Tier::Vm), jobs: 3, running: 4, most: Some(4), ..Waiting::default() };
        let busy = RunningJob { phase: Phase::Run, ..checkout(Tier::Vm) };
        let mut view = View { slots: 1, running: vec![busy], ..View::default() };
        let free = |lane: &Waiting| Waiting { most: None, ..lane.clone() };
        assert_eq!(of_lane(&lane, &view), "tenant cap 4/4");
        assert_eq!(of_lane(&free(&lane), &view), "all 1 slots are taken");
        view.running[0].waits_for = Some("no clean vm sandbox".into());
        assert_eq!(
            of_lane(&free(&lane), &view),
            "all 1 slots are taken, 1 of them without a sandbox: no clean vm sandbox"
        );
        let why = "no KVM".to_owned();
        view.resting = vec![Resting { tier: Tier::Vm, why, rests_us: 1, tries: 2, again_us: 2_000_000 }];
        assert_eq!(of_lane(&lane, &view), "tier vm rests, the next try in 2 s: no KVM");
        view.resting[0].tries = 0;
        assert_eq!(
            of_lane(&lane, &view),
            "tier vm is refused here until a selftest finds that it holds: no KVM",
            "no time is told at which nothing is tried"
        );
        let other = Waiting { tier: Some(Tier::Docker), ..free(&lane) };
        assert!(of_lane(&other, &view).starts_with("all 1 slots"), "another tier does not rest");
        view.stopping = true;
        assert!(of_lane(&lane, &view).contains("stopping"));
        assert_eq!(of_lane(&free(&lane), &View { slots: 1, ..View::default() }), "its turn comes next");
    }

    #[test]
    fn only_what_waits_is_told_and_one_job_hears_of_its_own_tenant() {
        let lane = |tenant: &str, jobs, most| Waiting {
            tenant: Some(tenant.into()),
            jobs,
            running: 1,
            most,
            ..Waiting::default()
        };
        let waiting = vec![lane("acme", 0, None), lane("acme", 2, Some(1)), lane("other", 1, None)];
        let parked = vec![(Tier::Docker, 0), (Tier::Vm, 5)];
        let view = View { slots: 1, waiting, parked, ..View::default() };
        let told: Vec<_> = lanes(&view).map(|lane| (lane.tenant.unwrap_or_default(), lane.jobs)).collect();
        assert_eq!(told, [("acme".to_owned(), 2), ("other".to_owned(), 1), (String::new(), 5)]);
        assert_eq!(lanes(&view).last().unwrap().why, "no host offers tier vm");
        assert_eq!(of_one("acme", &view), "tenant cap 1/1");
        assert_eq!(of_one("other", &view), "its turn comes next");
    }
}
