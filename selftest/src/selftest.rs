//! The order of a selftest: lay the ground, ask the control once, ask each tier, judge.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use images::ImageRef;
use pool::Tier;
use thiserror::Error;
use worker::{Worker, causes};

use crate::{
    catalogue::Probe,
    control,
    ground::Ground,
    host::{self, Servers},
    inside::Inside,
    looks::Looks,
    report::{Report, TierReport},
};

/// What is asked, and with what.
#[derive(Debug)]
pub struct Selftest<'a> {
    /// Carries out the jobs.
    pub worker: &'a Worker,
    /// The program that calls [`control::main`] when it is started with [`control::CONTROL_ARG`]: mayfly itself.
    pub program: PathBuf,
    /// Where images and the ledger are.
    pub data_dir: PathBuf,
    /// Where things are kept that live as long as this process.
    pub run_dir: PathBuf,
    /// The image to run in.
    pub image: ImageRef,
    /// The tiers to ask.
    pub tiers: Vec<Tier>,
    /// The probes to ask, in the order of the catalogue.
    pub probes: Vec<&'static Probe>,
    /// Tiers that this host cannot run, and why.
    pub left_out: BTreeMap<String, String>,
    /// A word that this process has in its environment and that nobody else knows.
    pub token: String,
    /// The servers of the service form, where one is configured.
    pub servers: Servers,
}

/// There is no report.
#[derive(Debug, Error)]
pub enum SelftestError {
    /// The canary cannot be laid out.
    #[error("no canary can be laid out below {path}")]
    Ground {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
}

impl Selftest<'_> {
    /// Asks everything. `tell` hears what is done next.
    pub async fn run(self, mut tell: impl FnMut(&str)) -> Result<Report, SelftestError> {
        let ground = Ground::lay(&self.run_dir, self.token.clone())
            .map_err(|error| SelftestError::Ground { path: self.run_dir.clone(), error })?;
        tell("control");
        let mut control = match control::ask(&self.program, &ground.clues, &self.probes).await {
            Ok(looks) => looks,
            Err(error) => {
                // Without it, nothing is verified, and each probe says why.
                let why = causes(&error);
                Looks::unknown_of(&self.probes, &why)
            }
        };
        let everywhere = host::Everywhere {
            image: &self.image,
            data_dir: &self.data_dir,
            scratch: ground.clues.folder.clone(),
            servers: &self.servers,
        };
        let (host, broken) = everywhere.ask(&self.probes);
        control.extend(broken);
        let mut tiers = Vec::new();
        for tier in &self.tiers {
            tell(tier.name());
            let inside = Inside {
                worker: self.worker,
                tier: *tier,
                image: &self.image,
                clues: &ground.clues,
                egress: None,
            };
            let mut looks = Box::pin(inside.ask(&self.probes)).await;
            if *tier == Tier::Vm {
                // Its own kernel labels nothing; what counts is the machine's process.
                looks = looks.without("P11");
            }
            let (seen, broken) = Box::pin(host::of_tier(&inside, &self.probes, &self.data_dir)).await;
            looks.extend(seen);
            looks.extend(host.clone());
            let mut control = control.clone();
            control.extend(broken);
            tiers.push(TierReport::new(*tier, &self.probes, &looks, &control));
        }
        Ok(Report {
            schema_version: Report::SCHEMA_VERSION,
            holds: tiers.iter().all(|tier| tier.alarming().next().is_none()),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            kernel: kernel(),
            image: self.image.to_string(),
            tiers,
            left_out: self.left_out,
        })
    }
}

fn kernel() -> String {
    fs::read_to_string(Path::new("/proc/sys/kernel/osrelease")).unwrap_or_default().trim().to_owned()
}
