//! The tiers that the suite runs on, and what a behaviour is given.

use std::sync::OnceLock;

use serde_json::Value;

use super::{Finished, Mayfly, Node, Running, Sandbox, dockerd, eventually, libvirtd};

/// How a sandbox is isolated. A tier joins the suite by a line here and one in [`on_every_tier`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tier {
    Chroot,
    Nspawn,
    Docker,
    Vm,
}

impl Tier {
    pub(crate) const ALL: [Self; 4] = [Self::Chroot, Self::Nspawn, Self::Docker, Self::Vm];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Chroot => "chroot",
            Self::Nspawn => "nspawn",
            Self::Docker => "docker",
            Self::Vm => "vm",
        }
    }
}

/// The first id of all sandboxes on the host, and how many each has.
const FIRST_ID: u32 = 0x7000_0000;
const IDS: u32 = 0x1_0000;

/// Whether all of this runs in a guest of scripts/guest-systemd: emulated, so that every program takes ten times as long.
pub(crate) fn in_guest() -> bool {
    std::env::var_os("MAYFLY_TEST_IN_GUEST").is_some()
}

/// Where a behaviour is looked at: a tier, on a node of the test's own.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) tier: Tier,
    pub(crate) node: Node,
}

impl Place {
    /// `mayfly run` of one command in the image `minimal`.
    pub(crate) fn run<W: Into<String>>(&self, job: impl IntoIterator<Item = W>) -> Mayfly {
        self.run_in("minimal", job)
    }

    /// The same in another image.
    pub(crate) fn run_in<W: Into<String>>(&self, image: &str, job: impl IntoIterator<Item = W>) -> Mayfly {
        self.node.mayfly(["run", "--tier", self.tier.name(), "--image", image]).job(job)
    }

    /// A user or group id that a job saw, as the image knows it.
    ///
    /// On the docker tier there is no user namespace, so the job sees its ids as the host has them: the image's, behind
    /// the first of a range that is this sandbox's alone.
    pub(crate) fn inside(&self, seen: &str) -> u32 {
        let id = seen.parse().unwrap();
        match self.tier {
            Tier::Chroot | Tier::Nspawn | Tier::Vm => id,
            Tier::Docker => {
                assert!(FIRST_ID <= id, "{id} may be somebody's on the host");
                id % IDS
            }
        }
    }

    /// What a run said on stderr, without the warning that the runtime of this host's docker is old.
    pub(crate) fn complaints(&self, finished: &Finished) -> String {
        let old = |line: &str| self.tier == Tier::Docker && line.starts_with("mayfly: old runtime: runc ");
        finished.stderr.split_inclusive('\n').filter(|line| !old(line)).collect()
    }

    /// A shell script, in `minimal`.
    pub(crate) fn shell(&self, script: &str) -> Mayfly {
        self.run(["sh", "-c", script])
    }

    /// A Python program, in `base`.
    pub(crate) fn python(&self, program: &str) -> Mayfly {
        self.run_in("base", ["python3", "-I", "-B", "-c", program])
    }

    /// Starts a job that says `ready` once it is where the test wants it.
    pub(crate) fn start(&self, mayfly: Mayfly) -> (Running, Sandbox) {
        let mut running = mayfly.start();
        assert_eq!(running.line(), "ready");
        let sandbox = eventually("the job's sandbox is seen from the host", || {
            self.node.sandboxes().into_iter().find(|sandbox| !sandbox.job().is_empty())
        });
        (running, sandbox)
    }
}

/// Runs a job with `--json` and gives the result.
#[track_caller]
pub(crate) fn result_of(mayfly: Mayfly, code: i32) -> Value {
    mayfly.args(["--json"]).finish().code(code).json()
}

/// Looks at a behaviour on one tier, or says by name that this host cannot.
pub(crate) fn on(tier: Tier, behaviour: fn(&Place)) {
    match ready(tier) {
        Ok(()) => behaviour(&Place { tier, node: node(tier) }),
        Err(reason) => tell(&format!("tier {}: {reason}", tier.name())),
    }
}

/// Looks at a behaviour in machines that libvirt makes, or says by name that this host cannot.
pub(crate) fn on_libvirt(behaviour: fn(&Place)) {
    static READY: OnceLock<Result<(), String>> = OnceLock::new();
    let node = || libvirtd::shared().map(|daemon| libvirtd::use_by(Node::new(), daemon));
    let ready = || match node() {
        Some(node) => ready_on(&node.mayfly(["doctor", "--json"]).finish().json(), Tier::Vm),
        None => Err("libvirtd, virsh, qemu-img or tini is not installed".to_owned()),
    };
    match (READY.get_or_init(ready), node()) {
        (Ok(()), Some(node)) => behaviour(&Place { tier: Tier::Vm, node }),
        (Err(reason), _) => {
            let required = std::env::var("MAYFLY_TIERS_REQUIRED").unwrap_or_default();
            let required = required.split(',').any(|name| name == LIBVIRT);
            assert!(!required, "{LIBVIRT} is required and cannot run here: {reason}");
            tell(&format!("libvirt: {reason}"));
        }
        (Ok(()), None) => unreachable!("what was there is there"),
    }
}

/// Looks at something only if mayfly was built so that a test can end it, or leave out a step, wherever it wants.
pub(crate) fn with_failpoints(look: impl FnOnce()) {
    if cfg!(feature = "failpoints") { look() } else { tell("it needs --features failpoints") }
}

/// What CI calls the engine among the tiers that it counts on.
const LIBVIRT: &str = "vm-libvirt";

fn tell(reason: &str) {
    // The runner names the thread of a test by it.
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    servers::tell_skipped(&test, reason);
}

/// What it takes to run machines on a host where no kernel boots under KVM.
pub(crate) const EMULATION: &str = "\n[vm]\naccel = \"tcg\"\nallow_emulation = true\n";

/// A node whose mayflies can make sandboxes of a tier.
fn node(tier: Tier) -> Node {
    match (tier, dockerd::shared()) {
        (Tier::Docker, Some(daemon)) => dockerd::use_by(Node::new(), daemon),
        (Tier::Vm, _) => Node::new().configured(EMULATION),
        _ => Node::new(),
    }
}

/// Whether this host can run a tier; why not, if it cannot. `mayfly doctor` knows.
pub(crate) fn ready(tier: Tier) -> Result<(), String> {
    static REPORTS: [OnceLock<Value>; 2] = [const { OnceLock::new() }; 2];
    // What is wanted of machines is a matter of configuration.
    let (report, asked) = if tier == Tier::Vm { (&REPORTS[1], tier) } else { (&REPORTS[0], Tier::Docker) };
    let report = report.get_or_init(|| node(asked).mayfly(["doctor", "--json"]).finish().json());
    ready_on(report, tier)
}

fn ready_on(report: &Value, tier: Tier) -> Result<(), String> {
    let tiers = report["tiers"].as_array().unwrap();
    let entry = tiers.iter().find(|entry| entry["tier"] == tier.name()).unwrap();
    if entry["ready"] == true { Ok(()) } else { Err(entry["why_not"].to_string()) }
}

/// One test for each behaviour and tier, named `<behaviour>::on_<tier>`.
macro_rules! on_every_tier {
    ($($behaviour:ident)+) => { $(
        mod $behaviour {
            #[test]
            fn on_chroot() {
                crate::harness::on(crate::harness::Tier::Chroot, super::$behaviour);
            }

            #[test]
            fn on_nspawn() {
                crate::harness::on(crate::harness::Tier::Nspawn, super::$behaviour);
            }

            #[test]
            fn on_docker() {
                crate::harness::on(crate::harness::Tier::Docker, super::$behaviour);
            }

            #[test]
            fn on_vm() {
                crate::harness::on(crate::harness::Tier::Vm, super::$behaviour);
            }

            #[test]
            #[ignore = "a machine is booted for each, which takes seconds where it is emulated: `make soak`"]
            fn on_vm_by_libvirt() {
                crate::harness::on_libvirt(super::$behaviour);
            }
        }
    )+ };
}
pub(crate) use on_every_tier;

/// Behaviours that are looked at on the vm tier's other engine whenever the tests run, one of each sort.
macro_rules! by_libvirt_too {
    ($($behaviour:ident)+) => {
        mod by_libvirt {
            $(
                #[test]
                fn $behaviour() {
                    crate::harness::on_libvirt(super::$behaviour);
                }
            )+
        }
    };
}
pub(crate) use by_libvirt_too;

/// A suite that skips what it should have shown proves nothing: CI names the tiers that it counts on.
#[test]
fn the_tiers_that_are_required_can_run_here() {
    let Ok(required) = std::env::var("MAYFLY_TIERS_REQUIRED") else {
        // Without a list, CI counts on all.
        let ci = std::env::var("CI").is_ok_and(|ci| ci == "true");
        return assert!(!ci || Tier::ALL.iter().all(|tier| ready(*tier).is_ok()), "a tier cannot run in CI");
    };
    // Whoever looks at the vm tier's other engine sees to that one.
    for name in required.split(',').filter(|name| !name.is_empty() && *name != LIBVIRT) {
        let tier = Tier::ALL.into_iter().find(|tier| tier.name() == name);
        let tier = tier.unwrap_or_else(|| panic!("MAYFLY_TIERS_REQUIRED: the suite knows no tier {name:?}"));
        assert_eq!(ready(tier), Ok(()), "tier {name} is required and cannot run here");
    }
}
