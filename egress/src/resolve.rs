//! Names become addresses, on the host.

use std::{
    collections::HashMap,
    fmt, fs, io,
    net::{IpAddr, ToSocketAddrs},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::spawn_blocking,
    time::timeout,
};

use crate::{
    address::special,
    limits::Share,
    refusal::Refusal,
    rule::{Host, Rule, Target},
};

/// How long a name may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Look-ups at once: half of the threads on which a runtime lets its tasks block.
const AT_ONCE: usize = 256;
/// What the host knows before it asks anybody.
const HOSTS_FILE: &str = "/etc/hosts";

/// Names that the operator gave addresses. They come before the system's, and lead wherever they say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hosts(HashMap<String, IpAddr>);

impl FromIterator<(String, IpAddr)> for Hosts {
    fn from_iter<I: IntoIterator<Item = (String, IpAddr)>>(entries: I) -> Self {
        Self(entries.into_iter().map(|(name, address)| (name.to_ascii_lowercase(), address)).collect())
    }
}

/// Looks names up, so many at once and no more.
pub struct Resolver {
    look_up: Arc<LookUp>,
    places: Arc<Semaphore>,
}

/// Blocks until it knows.
type LookUp = dyn Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync;

/// What the names of a tenant's jobs are resolved by.
#[derive(Debug)]
pub(crate) struct Names {
    pub(crate) hosts: Arc<Hosts>,
    pub(crate) resolver: Arc<Resolver>,
    pub(crate) share: Arc<Share>,
}

impl Resolver {
    /// One that asks `look_up`, which may block until it knows.
    #[must_use]
    pub fn new(look_up: impl Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync + 'static) -> Self {
        Self { look_up: Arc::new(look_up), places: Arc::new(Semaphore::new(AT_ONCE)) }
    }

    /// Nobody can stop a look-up. Its places are taken until it has really ended, even if nobody waits for it any more:
    /// what a tenant asks a name server that never answers must not take the threads that others need.
    async fn look_up(&self, name: &str, tenants: &Arc<Semaphore>) -> io::Result<Vec<IpAddr>> {
        let places = (place(tenants).await?, place(&self.places).await?);
        let (look_up, name) = (self.look_up.clone(), name.to_owned());
        let looking = spawn_blocking(move || {
            let _places = places;
            look_up(&name)
        });
        looking.await.map_err(io::Error::other)?
    }
}

async fn place(of: &Arc<Semaphore>) -> io::Result<OwnedSemaphorePermit> {
    of.clone().acquire_owned().await.map_err(io::Error::other)
}

impl Default for Resolver {
    /// The system's.
    fn default() -> Self {
        Self::new(ask_system)
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Resolver")
    }
}

impl PartialEq for Resolver {
    /// Who looks a name up makes no difference to what is allowed.
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Resolver {}

/// A name with a dot in it is whole: the C library would try it with the host's search suffixes, too. It does not if
/// the name ends with a dot, but then it overlooks what the host's own file says.
fn ask_system(name: &str) -> io::Result<Vec<IpAddr>> {
    if !name.contains('.') {
        return addresses_of(name);
    }
    let file = fs::read(HOSTS_FILE).unwrap_or_default();
    let listed = listed(&String::from_utf8_lossy(&file), name);
    if listed.is_empty() { addresses_of(&format!("{name}.")) } else { Ok(listed) }
}

fn addresses_of(name: &str) -> io::Result<Vec<IpAddr>> {
    Ok((name, 0).to_socket_addrs()?.map(|found| found.ip()).collect())
}

/// What a file like `/etc/hosts` says of a name.
fn listed(file: &str, name: &str) -> Vec<IpAddr> {
    let line = |line: &str| {
        let mut words = line.split('#').next()?.split_whitespace();
        let address = words.next()?.parse().ok()?;
        words.any(|word| word.eq_ignore_ascii_case(name)).then_some(address)
    };
    file.lines().filter_map(line).collect()
}

impl Names {
    /// The addresses to which a target may lead. They are connected to as they are: nobody resolves twice.
    pub(crate) async fn resolve(&self, target: &Target, rule: &Rule) -> Result<Vec<IpAddr>, Refusal> {
        let name = match &target.host {
            // A rule names it.
            Host::Address(address) => return Ok(vec![*address]),
            Host::Name(name) => name,
        };
        if let Some(address) = self.hosts.0.get(name) {
            return Ok(vec![*address]);
        }
        let unknown = |why: String| Refusal::Resolve { host: name.clone(), why };
        let found = timeout(PATIENCE, self.resolver.look_up(name, self.share.look_ups())).await;
        let found = found.map_err(|_| unknown(format!("no answer within {PATIENCE:?}")))?;
        let found = found.map_err(|error| unknown(error.to_string()))?;
        let mut kind = None;
        let allowed: Vec<_> = found
            .into_iter()
            .filter(|address| {
                let what =
                    special(*address).filter(|_| !rule.addresses.iter().any(|net| net.contains(address)));
                kind = kind.or(what);
                what.is_none()
            })
            .collect();
        match (allowed.is_empty(), kind) {
            (false, _) => Ok(allowed),
            (true, Some(kind)) => Err(Refusal::Address { host: name.clone(), kind }),
            (true, None) => Err(unknown("it has no address".to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Mutex,
        mpsc::{Receiver, Sender, channel},
    };

    use tokio::time::advance;

    use super::*;
    use crate::limits::TENANTS_LOOK_UPS;

    fn asked(rule: &str, addresses: &[&str]) -> (Target, Rule) {
        let mut rule: Rule = rule.parse().unwrap();
        rule.addresses = addresses.iter().map(|net| net.parse().unwrap()).collect();
        ("localhost:80".parse().unwrap(), rule)
    }

    fn names(resolver: &Arc<Resolver>) -> Names {
        Names { hosts: Arc::default(), resolver: resolver.clone(), share: Arc::default() }
    }

    #[tokio::test]
    async fn a_name_that_leads_to_the_loopback_is_refused_unless_the_rule_names_that() {
        let names = names(&Arc::default());
        let (target, rule) = asked("localhost", &[]);
        let refusal = names.resolve(&target, &rule).await.unwrap_err();
        assert_eq!(refusal, Refusal::Address { host: "localhost".into(), kind: "a loopback" });
        let (target, rule) = asked("localhost", &["127.0.0.0/8", "::1/128"]);
        assert!(names.resolve(&target, &rule).await.is_ok());
    }

    #[tokio::test]
    async fn what_the_operator_wrote_comes_first() {
        let hosts = Hosts::from_iter([("LocalHost".to_owned(), "192.0.2.7".parse().unwrap())]);
        let names = Names { hosts: Arc::new(hosts), ..names(&Arc::default()) };
        let (target, rule) = asked("localhost", &[]);
        let found = names.resolve(&target, &rule).await.unwrap();
        assert_eq!(found, ["192.0.2.7".parse::<IpAddr>().unwrap()]);
    }

    #[tokio::test]
    async fn wherever_a_name_leads_nobody_gets_to_the_hosts_own_or_to_metadata() {
        for (leads_to, kind) in [
            ("127.0.0.1", "a loopback"),
            ("169.254.169.254", "a link-local or metadata"),
            ("168.63.129.16", "a metadata"),
            ("::ffff:10.0.0.1", "a private"),
        ] {
            let address: IpAddr = leads_to.parse().unwrap();
            let names = names(&Arc::new(Resolver::new(move |_| Ok(vec![address]))));
            let (target, rule) = asked("localhost", &["192.168.0.0/16"]);
            let refusal = names.resolve(&target, &rule).await.unwrap_err();
            assert_eq!(refusal, Refusal::Address { host: "localhost".into(), kind }, "{leads_to}");
        }
    }

    #[test]
    fn the_hosts_own_file_is_read_as_the_c_library_reads_it() {
        let file = "# 192.0.2.9 a.b\n192.0.2.1 a.b c # d\nno.address a.b\n\n ::1\tx  A.B\n";
        let expected: [IpAddr; 2] = ["192.0.2.1".parse().unwrap(), "::1".parse().unwrap()];
        assert_eq!(listed(file, "a.b"), expected);
        assert!(listed(file, "d").is_empty() && listed(file, "a").is_empty());
    }

    /// A name server that says nothing until it is let; it says which name it was asked for.
    fn silent_one() -> (Arc<Resolver>, Receiver<String>, Sender<()>) {
        let ((said, heard), (let_go, may_go)) = (channel(), channel());
        let may_go = Mutex::new(may_go);
        let look_up = move |name: &str| {
            said.send(name.to_owned()).unwrap();
            if name == "slow.example" {
                may_go.lock().unwrap().recv().unwrap();
            }
            Ok(vec!["192.0.2.1".parse().unwrap()])
        };
        (Arc::new(Resolver::new(look_up)), heard, let_go)
    }

    #[tokio::test(start_paused = true)]
    async fn look_ups_that_never_end_take_their_own_tenants_places_and_nobody_elses() {
        let (resolver, asked_for, let_go) = silent_one();
        let (one, other) = (Arc::new(names(&resolver)), names(&resolver));
        let rule = Rule { addresses: vec!["192.0.2.0/24".parse().unwrap()], ..asked("*", &[]).1 };
        let slow: Target = "slow.example:80".parse().unwrap();
        let quick: Target = "quick.example:80".parse().unwrap();
        let waiting: Vec<_> = (0..TENANTS_LOOK_UPS)
            .map(|_| {
                let (one, slow, rule) = (one.clone(), slow.clone(), rule.clone());
                tokio::spawn(async move { one.resolve(&slow, &rule).await })
            })
            .collect();
        tokio::task::yield_now().await;
        advance(PATIENCE).await;
        for given_up in waiting {
            assert!(matches!(given_up.await.unwrap(), Err(Refusal::Resolve { .. })));
        }
        // Nobody waits for them any more, and they are under way still.
        let (found, ()) = tokio::join!(one.resolve(&quick, &rule), async {
            tokio::task::yield_now().await;
            advance(PATIENCE).await;
        });
        assert!(matches!(found, Err(Refusal::Resolve { .. })), "{found:?}");
        assert!(other.resolve(&quick, &rule).await.is_ok(), "another tenant waits for them");
        for _ in 0..TENANTS_LOOK_UPS {
            let_go.send(()).unwrap();
        }
        assert!(one.resolve(&quick, &rule).await.is_ok(), "what has ended holds its place");
        assert_eq!(asked_for.try_iter().filter(|name| name == "quick.example").count(), 2);
    }
}
