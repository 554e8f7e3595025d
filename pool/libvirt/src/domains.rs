//! What is done at libvirt, a call after the other. Every call here may wait for ever: mayfly sees to that.

use std::{
    sync::{Mutex, PoisonError},
    thread::sleep,
    time::{Duration, Instant},
};

use libvirt_protocol::{Answer, Ask, LABEL, PREFIX};
use virt::{
    connect::Connect,
    domain::{Domain, DomainState},
    error::{Error, ErrorNumber},
    sys,
};

/// How long libvirt may take to see that a process has ended. Mostly it has seen it before it is asked.
const NOTICED: Duration = Duration::from_secs(5);

/// Libvirt's daemon at one address.
#[derive(Debug)]
pub(crate) struct Libvirt {
    uri: String,
    /// Opened when it is wanted, and anew when the daemon was started again.
    connection: Mutex<Option<Connect>>,
}

/// Libvirt does not do it.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) step: &'static str,
    pub(crate) why: String,
}

/// Names the step that failed.
trait Step<T> {
    fn step(self, step: &'static str) -> Result<T, Refused>;
}

impl<T> Step<T> for Result<T, Error> {
    fn step(self, step: &'static str) -> Result<T, Refused> {
        self.map_err(|error| Refused { step, why: error.message().to_owned() })
    }
}

impl Libvirt {
    pub(crate) fn at(uri: &str) -> Self {
        Self { uri: uri.to_owned(), connection: Mutex::default() }
    }

    pub(crate) fn answer(&self, ask: &Ask) -> Result<Answer, Refused> {
        let connection = self.connect()?;
        match ask {
            Ask::Host => host(&connection),
            Ask::Boot { xml } => boot(&connection, xml),
            Ask::Keep { domain, snapshot } => keep(&find(&connection, domain)?, snapshot),
            Ask::Revert { domain, snapshot } => revert(&find(&connection, domain)?, snapshot),
            Ask::Label { domain, element } => label(&find(&connection, domain)?, element),
            Ask::Remove { domain } => remove(&connection, domain),
            Ask::List { instance } => list(&connection, instance),
        }
    }

    fn connect(&self) -> Result<Connect, Refused> {
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        // A question, as a connection does not notice by itself that its daemon has ended.
        if let Some(open) = connection.as_ref().filter(|open| open.lib_version().is_ok()) {
            return Ok(open.clone());
        }
        let open = Connect::open(Some(&self.uri)).step("reach libvirt")?;
        Ok(connection.insert(open).clone())
    }
}

fn host(connection: &Connect) -> Result<Answer, Refused> {
    let libvirt = connection.lib_version().step("ask libvirt for its version")?;
    let qemu = connection.hyp_version().step("ask libvirt for QEMU's version")?;
    // See virGetVersion(): one number for all three.
    let text = |number: u32| format!("{}.{}.{}", number / 1_000_000, number / 1000 % 1000, number % 1000);
    Ok(Answer::Host { libvirt: text(libvirt), qemu: text(qemu) })
}

fn find(connection: &Connect, name: &str) -> Result<Domain, Refused> {
    connection.lookup_domain_by_name(name).step("find the domain")
}

fn boot(connection: &Connect, xml: &str) -> Result<Answer, Refused> {
    // A word that libvirt does not know would be one less confinement, and nobody would hear of it.
    let flags = sys::VIR_DOMAIN_DEFINE_VALIDATE;
    let domain = connection.define_domain_xml_flags(xml, flags).step("define the domain")?;
    domain.create().step("start the domain").map(|()| Answer::Done)
}

fn keep(domain: &Domain, snapshot: &str) -> Result<Answer, Refused> {
    // A snapshot of a machine that has died succeeds as well.
    must_run(domain)?;
    let xml = format!("<domainsnapshot><name>{snapshot}</name></domainsnapshot>");
    domain.create_snapshot_xml(&xml, 0).step("keep the domain's snapshot")?;
    must_run(domain).map(|()| Answer::Done)
}

fn revert(domain: &Domain, snapshot: &str) -> Result<Answer, Refused> {
    // By its name and no other: never the one that libvirt takes for the current one.
    let snapshot = Domain::lookup_snapshot_by_name(domain, snapshot, 0).step("find the domain's snapshot")?;
    must_be_over(domain)?;
    snapshot.revert(sys::VIR_DOMAIN_SNAPSHOT_REVERT_RUNNING).step("revert the domain")?;
    // That it was reverted does not say that it runs.
    must_run(domain).map(|()| Answer::Done)
}

fn label(domain: &Domain, element: &str) -> Result<Answer, Refused> {
    let (kind, flags) = (sys::VIR_DOMAIN_METADATA_ELEMENT.cast_signed(), sys::VIR_DOMAIN_AFFECT_LIVE);
    let labelled = domain.set_metadata(kind, Some(element), Some(PREFIX), Some(LABEL), flags);
    labelled.step("label the domain").map(|()| Answer::Done)
}

/// Libvirt 9.0 ends whatever process the domain has by then when it comes to hear that the last one's monitor has closed: the
/// next life's must not begin before that.
fn must_be_over(domain: &Domain) -> Result<(), Refused> {
    let deadline = Instant::now() + NOTICED;
    while domain.is_active().step("ask whether the domain has ended")? {
        if Instant::now() > deadline {
            let why = "its last process has ended, and libvirt does not see it".to_owned();
            return Err(Refused { step: "find the domain ended", why });
        }
        // A call that would wait for it needs libvirt's event loop, for the whole process and never to be ended.
        sleep(Duration::from_millis(1));
    }
    Ok(())
}

fn must_run(domain: &Domain) -> Result<(), Refused> {
    let (state, _) = domain.state().step("ask for the domain's state")?;
    if state.is(DomainState::Running) {
        return Ok(());
    }
    Err(Refused { step: "find the domain running", why: format!("its state is {state:?}") })
}

fn remove(connection: &Connect, name: &str) -> Result<Answer, Refused> {
    let domain = match connection.lookup_domain_by_name(name) {
        Err(error) if is(&error, ErrorNumber::NoDomain) => return Ok(Answer::Done),
        found => found.step("find the domain")?,
    };
    match domain.destroy() {
        // It does not run.
        Err(error) if is(&error, ErrorNumber::OperationInvalid) => {}
        // It was never to stay.
        Err(error) if is(&error, ErrorNumber::NoDomain) => return Ok(Answer::Done),
        destroyed => destroyed.step("end the domain")?,
    }
    let flags = sys::VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA | sys::VIR_DOMAIN_UNDEFINE_MANAGED_SAVE;
    match domain.undefine_flags(flags) {
        Err(error) if is(&error, ErrorNumber::NoDomain) => Ok(Answer::Done),
        undefined => undefined.step("forget the domain").map(|()| Answer::Done),
    }
}

fn list(connection: &Connect, instance: &str) -> Result<Answer, Refused> {
    let label = format!("instance='{instance}'");
    let mut names = Vec::new();
    for domain in connection.list_all_domains(0).step("list the domains")? {
        let element = domain.metadata(sys::VIR_DOMAIN_METADATA_ELEMENT.cast_signed(), Some(LABEL), 0);
        match element {
            Ok(element) if element.replace('"', "'").contains(&label) => {
                names.push(domain.name().step("ask for a domain's name")?);
            }
            // Another's, or gone meanwhile.
            Ok(_) | Err(_) => {}
        }
    }
    Ok(Answer::Domains(names))
}

fn is(error: &Error, number: ErrorNumber) -> bool {
    error.code().is(number)
}
