//! What a job reaches that was given a way out, by the count of a listener outside: it may reach one name at one port, and
//! asks for others besides. The control asks the same with rules that allow all of it.

use std::{
    net::{IpAddr, Ipv4Addr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
};

use egress::{Ask, Egress, Hosts, Plan, Rights, Rule};
use worker::{Company, JobResult};

use crate::{
    catalogue::Probe,
    inside::{Inside, LONG, told},
    looks::{Look, Looks},
};

const ID: &str = "N08";
/// Names that no resolver knows (RFC 6761).
const LISTED: &str = "listed.test";
const UNLISTED: &str = "unlisted.test";

/// What was seen, and what the control saw.
pub(super) async fn ask(inside: &Inside<'_>, probes: &[&'static Probe]) -> (Looks, Looks) {
    let (mut looks, mut controls) = (Looks::default(), Looks::default());
    if probes.iter().any(|probe| probe.id == ID) {
        looks.add(ID, look(inside, rules).await.unwrap_or_else(Look::unknown));
        controls.add(ID, look(inside, no_rules).await.unwrap_or_else(Look::unknown));
    }
    (looks, controls)
}

/// Somebody outside who counts.
struct Outside {
    port: u16,
    reached: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
}

impl Outside {
    fn open() -> Result<Self, String> {
        let problem = |error: std::io::Error| format!("nobody can listen on the loopback: {error}");
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(problem)?;
        let port = listener.local_addr().map_err(problem)?.port();
        let reached = Arc::new(AtomicU64::new(0));
        let over = Arc::new(AtomicBool::new(false));
        let (count, ends) = (reached.clone(), over.clone());
        thread::spawn(move || {
            while listener.accept().is_ok() {
                if ends.load(Ordering::SeqCst) {
                    break;
                }
                count.fetch_add(1, Ordering::SeqCst);
            }
        });
        Ok(Self { port, reached, over })
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        // The thread hears of it by one connection more.
        self.over.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
    }
}

/// One name at one port.
fn rules(port: u16) -> Vec<Rule> {
    parse(&[format!("{LISTED}:{port}")])
}

/// Everything that is asked for.
fn no_rules(_: u16) -> Vec<Rule> {
    let mut rules = parse(&["*:*".to_owned(), "127.0.0.1:*".to_owned()]);
    for rule in &mut rules {
        rule.addresses = ["127.0.0.0/8", "::1/128"].iter().filter_map(|net| net.parse().ok()).collect();
    }
    rules
}

fn parse(texts: &[String]) -> Vec<Rule> {
    texts.iter().filter_map(|text| text.parse().ok()).collect()
}

fn plan(rules: Vec<Rule>) -> Option<Plan> {
    let here = IpAddr::from(Ipv4Addr::LOCALHOST);
    let hosts: Hosts = [LISTED, UNLISTED].map(|name| (name.to_owned(), here)).into_iter().collect();
    let wide = rules.len() > 1;
    let rights = Rights { allow: rules, hosts: Arc::new(hosts), ..Rights::default() };
    let asked = if wide { vec!["*:*".to_owned(), "127.0.0.1:*".to_owned()] } else { vec![LISTED.to_owned()] };
    rights.grant("selftest", &Ask { allow: &asked, tunnels: &[], secrets: &[] }).ok()?
}

async fn look(inside: &Inside<'_>, rules: fn(u16) -> Vec<Rule>) -> Result<Look, String> {
    let (outside, other) = (Outside::open()?, Outside::open()?);
    let asks = [
        format!("{LISTED}:{}", outside.port),
        format!("{UNLISTED}:{}", outside.port),
        format!("127.0.0.1:{}", outside.port),
        format!("localhost:{}", outside.port),
        format!("{LISTED}:{}", other.port),
    ];
    let mut job = inside.job(["role=door".to_owned(), format!("asks={}", asks.join(","))], LONG)?;
    job.egress = Some(Arc::new(plan(rules(outside.port)).ok_or("no such rights can be had")?));
    let result = inside.work(&job, Company::default()).await;
    let reached = outside.reached.load(Ordering::SeqCst) + other.reached.load(Ordering::SeqCst);
    let egress = result.egress.as_ref().ok_or_else(|| told(&result))?;
    judge(&asks, reached, egress, &result)
}

/// The listed name once and nothing else, and all of it in the record.
fn judge(asks: &[String], reached: u64, egress: &Egress, result: &JobResult) -> Result<Look, String> {
    let recorded = egress.connections.len() as u64 == egress.made + egress.refused
        && egress.made + egress.refused == asks.len() as u64
        && egress.made == reached;
    let seen =
        format!("{reached} of {} that were asked for were reached, {} refused", asks.len(), egress.refused);
    match reached {
        0 => Err(format!("not even the listed name was reached: {}", told(result))),
        1 if !recorded => Ok(Look::open(format!("{seen}, and the record says otherwise"))),
        1 => Ok(Look::held(seen)),
        _ => Ok(Look::open(seen)),
    }
}
