//! A sandbox that shares the host's kernel, from the host's side, and how nothing of it stays.

use std::{
    fs, io,
    os::fd::{AsRawFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec},
    process::{Signal, pidfd_send_signal},
};
use tokio::{
    io::Interest,
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

use crate::{
    body::{DestroyError, NarrowError, Usage},
    cgroup::{Cgroup, is_frozen},
    disk,
    docker::{Container, Removed},
    failpoint,
    ledger::Ended,
    limits::Limits,
    obituary::Obituary,
    tier::Tier,
    tiers::PoolSlot,
    turns::{Turns, Youth},
    uids::UidRange,
    vm::libvirt::Domain,
    watch::watch,
    witness::{Happening, Witness},
};

/// How long killed processes may take to be gone. Under memory pressure their memory takes time to free.
const DEATH_DEADLINE: Duration = Duration::from_secs(10);

/// How often a cgroup that the kernel still holds is tried again, and how long between.
const REMOVALS: u32 = 200;
const BETWEEN_REMOVALS: Duration = Duration::from_millis(5);

/// What a sandbox is made of on the host. Ends with [`Remains::destroy`].
#[derive(Debug)]
pub(crate) struct Remains {
    /// The first process, once there is one, and those that it cannot live without. The end of any is the end of all.
    vital: Vec<OwnedFd>,
    /// Missing for as long as a container of it is being made.
    cgroup: Option<Cgroup>,
    /// Where a container engine has a part of it.
    container: Option<Container>,
    /// Where libvirt has a part of it. Its ids are that one's then.
    domain: Option<Domain>,
    uids: Option<UidRange>,
    /// Once the sandbox counts as clean.
    obituary: Option<Obituary>,
    /// Who hears of one that never was and cannot be ended.
    tier: Tier,
    witness: Arc<dyn Witness>,
    /// While its job begins.
    youth: Option<Youth>,
    turns: Arc<Turns>,
}

impl Remains {
    pub(crate) fn new(tier: Tier, cgroup: Cgroup, uids: UidRange, undertaker: &Undertaker) -> Self {
        Self { cgroup: Some(cgroup), uids: Some(uids), ..Self::nothing(tier, undertaker) }
    }

    /// One that is a container, which need not be made yet.
    pub(crate) fn of_container(container: Container, uids: UidRange, undertaker: &Undertaker) -> Self {
        Self { container: Some(container), uids: Some(uids), ..Self::nothing(Tier::Docker, undertaker) }
    }

    /// One that is a domain of libvirt's, which outlives it.
    pub(crate) fn of_domain(cgroup: Cgroup, domain: Domain, undertaker: &Undertaker) -> Self {
        Self { cgroup: Some(cgroup), domain: Some(domain), ..Self::nothing(Tier::Vm, undertaker) }
    }

    fn nothing(tier: Tier, undertaker: &Undertaker) -> Self {
        Self {
            vital: Vec::new(),
            cgroup: None,
            container: None,
            domain: None,
            uids: None,
            obituary: None,
            tier,
            witness: Arc::clone(&undertaker.witness),
            youth: None,
            turns: Arc::clone(&undertaker.turns),
        }
    }

    pub(crate) fn depend_on(&mut self, pidfd: OwnedFd) {
        self.vital.push(pidfd);
    }

    pub(crate) fn cgroup(&self) -> &Cgroup {
        self.cgroup.as_ref().expect("a container is settled before anybody asks")
    }

    pub(crate) fn uids(&self) -> &UidRange {
        let own = || self.uids.as_ref().expect("what is no domain has ids of its own");
        self.domain.as_ref().map_or_else(own, Domain::uids)
    }

    async fn destroy(mut self) -> Result<(), DestroyError> {
        drop(self.youth.take());
        let _turn = Arc::clone(&self.turns).end().await;
        let (obituary, tier, witness) = (self.obituary.take(), self.tier, Arc::clone(&self.witness));
        let began = Instant::now();
        let ended = self.end().await;
        let (how, took) = (*ended.as_ref().unwrap_or(&Ended::Quarantined), began.elapsed());
        match obituary {
            Some(obituary) => {
                failpoint::pass("gone");
                obituary.write(how, took);
            }
            None if ended.is_err() => witness.hear(Happening::Ended { tier, how, took }),
            None => {}
        }
        ended.map(drop)
    }

    async fn end(self) -> Result<Ended, DestroyError> {
        let Self { vital, cgroup, container, domain, uids, .. } = self;
        if let Some(cgroup) = &cgroup {
            cgroup.let_go();
        }
        // With the init of a pid namespace the kernel ends every process in it.
        kill(&vital);
        failpoint::pass("ending");
        // Before the wait: only its engine can end a container that it has frozen.
        let removed = match &container {
            Some(container) => Some(container.remove().await),
            None => None,
        };
        if let Err(error) = wait(vital).await {
            // Something may still run under these ids, so no other sandbox gets them.
            if let Some(uids) = uids {
                uids.keep();
            }
            return Err(error);
        }
        if let Some(cgroup) = cgroup {
            remove(&cgroup).await?;
        }
        if let Some(domain) = domain {
            return domain.end().await;
        }
        match (container, removed, uids) {
            (Some(container), Some(Ok(Removed::Left)), Some(uids)) => container.leave(uids),
            (Some(container), Some(Err(error)), Some(uids)) => {
                container.leave(uids);
                return Err(error);
            }
            _ => {}
        }
        Ok(Ended::Destroyed)
    }
}

/// Whether a process has been stopped, see proc(5), or frozen. None if there is none any more.
fn halted(process: &OwnedFd) -> Option<bool> {
    let about = fs::read_to_string(format!("/proc/self/fdinfo/{}", process.as_raw_fd())).ok()?;
    let pid = about.lines().find_map(|line| line.strip_prefix("Pid:"))?.trim();
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Its name may be anything.
    let (_, behind_its_name) = stat.rsplit_once(") ")?;
    Some(behind_its_name.starts_with(['T', 't']) || is_frozen(pid)?)
}

fn kill(vital: &[OwnedFd]) {
    for process in vital {
        // ESRCH: it has ended by itself already.
        let _ = pidfd_send_signal(process, Signal::KILL);
    }
}

async fn wait(vital: Vec<OwnedFd>) -> Result<(), DestroyError> {
    let gone = async {
        for process in vital {
            watch(process, Interest::READABLE)?.readable().await.map(drop)?;
        }
        io::Result::Ok(())
    };
    match timeout(DEATH_DEADLINE, gone).await {
        Ok(Ok(())) => Ok(()),
        _ => Err(DestroyError::StillRunning(DEATH_DEADLINE)),
    }
}

async fn remove(cgroup: &Cgroup) -> Result<(), DestroyError> {
    let mut tries = 0;
    loop {
        match cgroup.remove() {
            Ok(()) => return Ok(()),
            // The kernel lets go of a dead process's cgroup a little after it lets go of the process.
            Err((_, error)) if error.kind() == io::ErrorKind::ResourceBusy && tries < REMOVALS => {
                tries += 1;
                sleep(BETWEEN_REMOVALS).await;
            }
            Err((path, error)) => return Err(DestroyError::Cgroup { path, error }),
        }
    }
}

/// A sandbox that lives. Dropped, it goes to the undertaker.
#[derive(Debug)]
pub(crate) struct Sandbox {
    remains: Option<Remains>,
    /// Weak, so that the undertaker's end does not wait for sandboxes that still live.
    grave: mpsc::WeakUnboundedSender<Remains>,
}

impl Sandbox {
    pub(crate) fn new(remains: Remains, undertaker: &Undertaker) -> Self {
        Self { remains: Some(remains), grave: undertaker.grave.downgrade() }
    }

    fn remains(&self) -> &Remains {
        self.remains.as_ref().expect("only destroy and drop take the remains")
    }

    fn remains_mut(&mut self) -> &mut Remains {
        self.remains.as_mut().expect("only destroy and drop take the remains")
    }

    pub(crate) fn depend_on(&mut self, pidfd: OwnedFd) {
        self.remains_mut().depend_on(pidfd);
    }

    pub(crate) fn cgroup(&self) -> &Cgroup {
        self.remains().cgroup()
    }

    /// The container has a cgroup, which is the sandbox's from now on.
    pub(crate) fn settle(&mut self, cgroup: Cgroup) {
        self.remains_mut().cgroup = Some(cgroup);
    }

    pub(crate) fn container(&self) -> Option<&Container> {
        self.remains().container.as_ref()
    }

    /// The host's uid of the sandbox's uid 0.
    pub(crate) fn id_base(&self) -> u32 {
        self.remains().uids().base()
    }

    /// It is clean; how it ends is written there.
    pub(crate) fn announce(&mut self, obituary: Obituary) {
        self.remains_mut().obituary = Some(obituary);
        self.be_sound();
    }

    /// Where the next life of its domain begins is a place that can be relied on.
    pub(crate) fn be_sound(&mut self) {
        if let Some(domain) = &mut self.remains_mut().domain {
            domain.be_sound();
        }
    }

    pub(crate) fn domain(&self) -> &Domain {
        self.remains().domain.as_ref().expect("asked by those who made it of one")
    }

    /// Its place in the pool goes with it.
    pub(crate) fn hold(&mut self, slot: PoolSlot) {
        if let Some(obituary) = &mut self.remains_mut().obituary {
            obituary.hold(slot);
        }
    }

    /// Its job has got it.
    pub(crate) fn be_young(&mut self) {
        let remains = self.remains_mut();
        remains.youth = Some(remains.turns.begin());
    }

    /// Tightens limits before the job begins: nothing of it is in memory or on the disk yet.
    pub(crate) fn narrow(&self, from: &Limits, to: &Limits) -> Result<(), NarrowError> {
        self.cgroup().limit(to)?;
        if (from.disk, from.inodes) == (to.disk, to.inodes) {
            return Ok(());
        }
        // The armed process: the agent is not where it was put on every tier.
        let inside = self.cgroup().job_pids().first().copied().ok_or(NarrowError::Dead)?;
        disk::resize(inside, to).map_err(NarrowError::Disk)
    }

    pub(crate) fn is_alive(&self) -> bool {
        // A pidfd becomes readable when its process has ended.
        let mut poll: Vec<_> =
            self.remains().vital.iter().map(|process| PollFd::new(process, PollFlags::IN)).collect();
        !poll.is_empty()
            && rustix::event::poll(&mut poll, Some(&Timespec::default())).is_ok_and(|ended| ended == 0)
    }

    /// Whether somebody on the host has stopped or frozen a process that it cannot live without. Nothing inside can do that.
    pub(crate) fn is_halted(&self) -> bool {
        self.remains().vital.iter().any(|process| halted(process).unwrap_or(false))
    }

    pub(crate) fn usage(&self) -> Usage {
        self.cgroup().usage()
    }

    /// How many processes of the job there are, unless only its own kernel knows.
    pub(crate) fn survivors(&self) -> Option<usize> {
        (!self.cgroup().is_whole()).then(|| self.cgroup().job_pids().len())
    }

    pub(crate) async fn destroy(mut self) -> Result<(), DestroyError> {
        self.remains.take().expect("only destroy and drop take the remains").destroy().await
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        if let Some(remains) = self.remains.take() {
            match self.grave.upgrade() {
                Some(grave) => drop(grave.send(remains)),
                // The pool is closed, and the spawner's end has killed the sandbox. The reaper finds the rest.
                None => drop(remains.uids.map(UidRange::keep)),
            }
        }
    }
}

/// Ends the sandboxes that nobody ended.
#[derive(Debug)]
pub(crate) struct Undertaker {
    grave: mpsc::UnboundedSender<Remains>,
    task: JoinHandle<()>,
    turns: Arc<Turns>,
    witness: Arc<dyn Witness>,
}

impl Undertaker {
    pub(crate) fn start(witness: Arc<dyn Witness>) -> Self {
        let (grave, mut arrivals) = mpsc::unbounded_channel::<Remains>();
        let task = tokio::spawn(async move {
            while let Some(remains) = arrivals.recv().await {
                if let Err(error) = remains.destroy().await {
                    tracing::error!(%error, "a dropped sandbox could not be destroyed");
                }
            }
        });
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        Self { grave, task, turns: Turns::new(cpus), witness }
    }

    pub(crate) fn bury(&self, remains: Remains) {
        let _ = self.grave.send(remains);
    }

    /// Waits until all that was dropped is gone.
    pub(crate) async fn finish(self) {
        drop(self.grave);
        if let Err(error) = self.task.await {
            tracing::error!(%error, "the task that ends dropped sandboxes failed");
        }
    }
}
