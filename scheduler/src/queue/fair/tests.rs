use proptest::prelude::*;

use super::*;

/// Tenants with one lane for each class: lane `2 * tenant` is high, the next one normal.
fn fair(weights: &[(u32, Option<u32>)]) -> Fair {
    let rights = weights.iter().map(|(weight, most)| Right { weight: *weight, most: *most }).collect();
    let ways: Vec<_> =
        (0..weights.len()).flat_map(|share| [true, false].map(|high| Way { share, high })).collect();
    Fair::new(rights, &ways)
}

fn fill(fair: &mut Fair, lane: LaneNumber, jobs: u64) {
    let version = fair.version(lane);
    fair.counted(lane, version, jobs);
}

/// Pulls so often; each job ends at once. Says from which lanes.
fn pulls(fair: &mut Fair, times: usize) -> Vec<LaneNumber> {
    let mut lanes = Vec::new();
    for _ in 0..times {
        let Some(lane) = fair.next() else { break };
        let left = fair.waiting_in(lane) - 1;
        fair.found(lane, left);
        fair.done(lane);
        lanes.push(lane);
    }
    lanes
}

#[test]
fn jobs_go_by_weight() {
    let mut fair = fair(&[(1, None), (3, None), (2, None)]);
    for tenant in 0..3 {
        fill(&mut fair, 2 * tenant + 1, 1000);
    }
    let lanes = pulls(&mut fair, 600);
    let of = |tenant| lanes.iter().filter(|lane| **lane / 2 == tenant).count();
    assert_eq!([of(0), of(1), of(2)], [100, 300, 200]);
}

#[test]
fn a_flood_does_not_keep_a_single_job_waiting() {
    let mut fair = fair(&[(1, None), (1, None)]);
    fill(&mut fair, 1, 5000);
    pulls(&mut fair, 100);
    fair.came(3);
    assert!(pulls(&mut fair, 3).contains(&3));
}

#[test]
fn nobody_waits_for_who_has_nothing() {
    let mut fair = fair(&[(1, None), (1000, None), (1, None)]);
    fill(&mut fair, 5, 10);
    assert_eq!(pulls(&mut fair, 20), [5; 10]);
    assert_eq!(fair.next(), None);
}

#[test]
fn no_tenant_runs_more_than_it_may() {
    let mut fair = fair(&[(5, Some(2)), (1, None)]);
    fill(&mut fair, 1, 100);
    fill(&mut fair, 3, 100);
    let mut taken = Vec::new();
    for _ in 0..20 {
        taken.push(fair.next().unwrap());
    }
    assert_eq!(taken.iter().filter(|lane| **lane == 1).count(), 2);
    fair.done(1);
    assert!((0..3).any(|_| fair.next() == Some(1)), "one ended, so another may run");
}

#[test]
fn high_goes_first_and_normal_does_not_starve() {
    let mut fair = fair(&[(1, None)]);
    fill(&mut fair, 0, 100);
    assert_eq!(pulls(&mut fair, 3), [0, 0, 0], "nobody waits behind them");
    fill(&mut fair, 1, 100);
    assert_eq!(pulls(&mut fair, 10), [0, 0, 0, 0, 1, 0, 0, 0, 0, 1]);
}

#[test]
fn a_pull_that_finds_nothing_costs_nothing() {
    let mut fair = fair(&[(1, Some(1)), (1, None)]);
    fill(&mut fair, 1, 1);
    let lane = fair.next().unwrap();
    let version = fair.version(lane);
    fair.missed(lane, version);
    assert_eq!(fair.next(), None);
    fair.came(1);
    assert_eq!(fair.next(), Some(1), "its cap is free again");
}

#[test]
fn an_old_count_does_not_hide_a_job_that_came_meanwhile() {
    let mut fair = fair(&[(1, None)]);
    let asked = fair.version(1);
    fair.came(1);
    fair.counted(1, asked, 0);
    assert_eq!(fair.next(), Some(1));
}

#[test]
fn nothing_is_shared_among_nobody() {
    assert_eq!(Fair::new(Vec::new(), &[]).next(), None);
}

proptest! {
    /// Whoever has a job gets one within as many pulls as the weights of the others come to, twice.
    #[test]
    fn the_wait_is_bounded(
        weights in prop::collection::vec(1_u32..20, 2..8),
        before in 0_usize..200,
        late in 0_usize..8,
        high in any::<bool>(),
    ) {
        let late = late % weights.len();
        let rights: Vec<_> = weights.iter().map(|weight| (*weight, None)).collect();
        let mut fair = fair(&rights);
        for tenant in (0..weights.len()).filter(|tenant| *tenant != late) {
            fill(&mut fair, 2 * tenant, 10_000);
            fill(&mut fair, 2 * tenant + 1, 10_000);
        }
        pulls(&mut fair, before);
        let lane = 2 * late + usize::from(!high);
        fair.came(lane);
        let others: u32 = weights.iter().enumerate().filter(|(tenant, _)| *tenant != late).map(|(_, w)| 2 * w).sum();
        let taken = pulls(&mut fair, others as usize + 1);
        prop_assert!(taken.contains(&lane), "{taken:?}");
    }

    /// A slot stays free only if nobody may have it.
    #[test]
    fn no_slot_stays_free_while_a_job_waits(
        tenants in prop::collection::vec((1_u32..10, prop::option::of(1_u32..4), 0_u64..5, 0_u64..5), 1..6),
    ) {
        let rights: Vec<_> = tenants.iter().map(|(weight, most, ..)| (*weight, *most)).collect();
        let mut fair = fair(&rights);
        let mut expected = 0;
        for (tenant, (_, most, high, normal)) in tenants.iter().enumerate() {
            fill(&mut fair, 2 * tenant, *high);
            fill(&mut fair, 2 * tenant + 1, *normal);
            expected += (high + normal).min(most.map_or(u64::MAX, u64::from));
        }
        let mut taken = 0;
        while let Some(lane) = fair.next() {
            let left = fair.waiting_in(lane) - 1;
            fair.found(lane, left);
            taken += 1;
        }
        prop_assert_eq!(taken, expected);
    }
}

#[test]
fn jobs_that_nobody_has_share_like_those_that_wait() {
    let mut fair = fair(&[(1, Some(1)), (1, None)]);
    fair.orphaned(1, 3);
    fill(&mut fair, 3, 1);
    assert_eq!(fair.waiting(), 4);
    let first = [fair.next().unwrap(), fair.next().unwrap()];
    assert!(first.contains(&1) && first.contains(&3), "each tenant has its turn: {first:?}");
    fair.adopted(1);
    fill(&mut fair, 3, 0);
    assert_eq!((fair.orphans(1), fair.next()), (2, None), "its tenant runs as many as it may");
    fair.done(1);
    assert_eq!(fair.next(), Some(1));
}

#[test]
fn a_lane_that_rests_is_passed_over_and_what_waits_there_is_still_counted() {
    let mut fair = fair(&[(1, None), (1, None)]);
    fill(&mut fair, 1, 2);
    fair.orphaned(1, 1);
    fill(&mut fair, 3, 1);
    fair.rest(1, true);
    assert_eq!(pulls(&mut fair, 10), [3]);
    assert_eq!(fair.waiting(), 3);
    fair.rest(1, false);
    assert_eq!(fair.next(), Some(1));
}
