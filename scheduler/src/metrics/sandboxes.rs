//! What the pool tells of its sandboxes.

use pool::{Accelerator, Happening, Tier, Witness};

use super::{Metrics, unix_time};

const NONE: &[&str] = &[];

impl Witness for Metrics {
    fn hear(&self, what: Happening<'_>) {
        let own = &self.families;
        match what {
            Happening::Made { tier, took, old_runtime, accelerator } => {
                own.creations.with_label_values(&[tier.name(), "made"]).inc();
                own.creation.with_label_values(&[tier.name()]).observe(took.as_secs_f64());
                if tier == Tier::Docker {
                    own.old_runtime.with_label_values(NONE).set(f64::from(u8::from(old_runtime)));
                }
                for known in
                    [Accelerator::Kvm, Accelerator::Tcg].into_iter().filter(|_| accelerator.is_some())
                {
                    let runs = f64::from(u8::from(accelerator == Some(known)));
                    own.accelerator.with_label_values(&[known.name()]).set(runs);
                }
            }
            Happening::NotMade { tier } => own.creations.with_label_values(&[tier.name(), "failed"]).inc(),
            Happening::Ended { tier, how, took } => {
                own.endings.with_label_values(&[tier.name(), how.name()]).inc();
                own.ending.with_label_values(&[tier.name()]).observe(took.as_secs_f64());
            }
            Happening::Swept { ended, stuck } => {
                for left in ended {
                    let kinds = [
                        ("mayfly", 1),
                        ("process", left.processes),
                        ("cgroup", left.cgroups),
                        ("container", left.containers),
                        ("domain", left.domains),
                        ("uid_range", left.uid_ranges),
                    ];
                    for (kind, count) in kinds {
                        own.reaper_leaks.with_label_values(&[kind]).inc_by(count as f64);
                    }
                }
                own.reaper_failures.with_label_values(NONE).inc_by(stuck as f64);
                if stuck == 0 {
                    own.reaper_last_run.with_label_values(NONE).set(unix_time());
                }
            }
        }
    }
}
