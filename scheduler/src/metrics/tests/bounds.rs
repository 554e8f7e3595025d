//! What a scrape weighs, whatever comes.

use std::{collections::BTreeSet, time::Duration};

use pool::{KindStatus, Tier};
use worker::JobResult;

use super::{known, result, view};
use crate::metrics::{Known, Metrics, View};

#[test]
fn what_a_scrape_weighs_is_bounded_however_many_images_and_tenants_come() {
    let metrics = Metrics::new(known());
    let before = metrics.text(Some(&View::default())).lines().count();
    let of =
        |n: usize, tier| KindStatus { tier, image: format!("image-{n}@sha256:0"), ..view().kinds[0].clone() };
    let kinds = (0..1000).flat_map(|n| [of(n, Tier::Chroot), of(n, Tier::Vm)]);
    let kinds = View { kinds: kinds.collect(), ..View::default() };
    for n in 0..1000 {
        metrics.completed(&JobResult { tenant: format!("stranger-{n}"), ..result(1) });
    }
    let text = metrics.text(Some(&kinds));
    let more = text.lines().count() - before;
    // Four states, what is wanted and what waits, on two tiers, of 64 images and all others.
    assert!(more <= 6 * 2 * (64 + 1), "{more} lines more");
    let images = text.lines().filter_map(|line| line.split_once("image=\"")?.1.split_once('"'));
    let images: BTreeSet<_> = images.map(|(image, _)| image).collect();
    // One that is kept ready is told apart however many there are.
    assert_eq!((images.len(), images.contains("base"), images.contains("other")), (66, true, true));
}

/// The bar of the project: 200 tenants and 50 images configured, less than 1 MiB.
#[test]
fn a_scrape_of_a_busy_host_with_200_tenants_and_50_images_is_less_than_a_mebibyte() {
    let images: Vec<_> = (0..50).map(|n| format!("an-image-with-a-longer-name-{n}")).collect();
    let of_all_tiers =
        |image: &String| Tier::ALL.map(|tier| (tier, image.clone())).into_iter().collect::<Vec<_>>();
    let tenants: Vec<_> = (0..200).map(|n| format!("a-tenant-with-a-name-{n}")).collect();
    let kept: Vec<_> = images.iter().flat_map(of_all_tiers).collect();
    let metrics = Metrics::new(Known { tenants: tenants.clone(), kept: kept.clone(), ..known() });
    let mut ran = 0;
    for tenant in &tenants {
        for outcome in crate::outcomes::ALL {
            for tier in Tier::ALL {
                ran += 1;
                let done = JobResult {
                    tenant: tenant.clone(),
                    tier: Some(tier),
                    outcome,
                    generation: Some(format!("{ran:032x}")),
                    ..result(1)
                };
                metrics.pulled(tenant, Some(tier), Duration::from_micros(1_234_567));
                metrics.ran(&done);
                metrics.completed(&done);
            }
        }
    }
    let kinds = kept.into_iter().map(|(tier, image)| KindStatus {
        tier,
        image,
        ready: 123,
        ..view().kinds[0].clone()
    });
    let view = View { kinds: kinds.collect(), ..view() };
    let text = metrics.text(Some(&view));
    assert!(text.len() < 1 << 20, "{} bytes, {} lines", text.len(), text.lines().count());
}
