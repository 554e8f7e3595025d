//! Probes from the host: what handles the bytes of sandboxes and of whoever sends jobs. Their controls are the same bytes in the
//! hands of something that was not made for them.

mod artifacts;
mod bytes;
mod documents;
mod egress;
mod secret;
mod watch;

use std::path::{Path, PathBuf};

use images::{ImageRef, Store};

use crate::{
    catalogue::{Probe, Way},
    inside::Inside,
    looks::{Look, Looks},
};

/// The servers of the service form, as far as they are configured.
#[derive(Debug, Clone, Default)]
pub struct Servers {
    /// Whether there is a broker.
    pub broker: bool,
    /// Whether there is a store.
    pub store: bool,
}

/// What is the same for all tiers.
pub(crate) struct Everywhere<'a> {
    pub(crate) image: &'a ImageRef,
    pub(crate) data_dir: &'a Path,
    /// A folder that is the selftest's alone.
    pub(crate) scratch: PathBuf,
    pub(crate) servers: &'a Servers,
}

impl Everywhere<'_> {
    /// What was seen, and what the controls saw.
    pub(crate) fn ask(&self, probes: &[&'static Probe]) -> (Looks, Looks) {
        let (mut looks, mut controls) = (Looks::default(), Looks::default());
        for probe in probes.iter().filter(|probe| probe.way == Way::Host) {
            let seen = match probe.id {
                "A03" => Some(bytes::archives(&self.scratch)[0].clone()),
                "A04" => Some(bytes::archives(&self.scratch)[1].clone()),
                "C01" => Some(bytes::frames()),
                "F13" => self.devices(),
                "M06" => Some(documents::malformed_jobs()),
                "M08" => Some(documents::greedy_jobs()),
                _ => None,
            };
            if let Some((look, control)) = seen {
                looks.add(probe.id, look);
                controls.add(probe.id, control);
            } else if let Some(why) = self.why_not(probe.id) {
                looks.add(probe.id, Look::unknown(why));
            }
        }
        (looks, controls)
    }

    fn devices(&self) -> Option<(Look, Look)> {
        let store = Store::open(&self.data_dir.join("images")).ok()?;
        let image = store.resolve(self.image).ok()?;
        Some(bytes::devices(&image.rootfs, &self.scratch))
    }

    fn why_not(&self, id: &str) -> Option<&'static str> {
        match id {
            "M09" if !self.servers.store => Some("no store is configured on this host"),
            "M01" | "M02" | "M03" | "M04" | "M05" | "M07" | "M10" if !self.servers.broker => {
                Some("no broker is configured on this host")
            }
            "M01" | "M02" | "M03" | "M04" | "M05" | "M07" | "M10" => Some(
                "it takes a producer's account and messages in a queue that is in use; mayfly's own tests ask it of a real broker",
            ),
            "M09" => Some("it takes another user's account; mayfly's own tests ask it of a real store"),
            "X07" => Some("it takes a host that dies while its job runs; mayfly's own tests end such hosts"),
            _ => None,
        }
    }
}

/// What has to be looked at on each tier.
pub(crate) async fn of_tier(
    inside: &Inside<'_>,
    probes: &[&'static Probe],
    data_dir: &Path,
) -> (Looks, Looks) {
    let (mut looks, mut controls) = artifacts::ask(inside, probes).await;
    for (seen, broken) in
        [watch::ask(inside, probes, data_dir).await, Box::pin(egress::ask(inside, probes)).await]
    {
        looks.extend(seen);
        controls.extend(broken);
    }
    (looks, controls)
}
