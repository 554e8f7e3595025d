//! What a job reaches that was given a way out, by the count of a listener outside: it may reach one name at one port, and
//! asks for others besides. The control asks the same with rules that allow all of it.

use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
};

use egress::{Ask, Egress, Hosts, Plan, Rights, Rule};
use worker::Company;

use crate::{
    catalogue::Probe,
    inside::{Inside, LONG, told},
    looks::{Look, Looks},
};

/// What a job reaches, and whether it reads there what a former one was answered.
const REACH: &str = "N08";
const KEPT: &str = "X05";
/// Looks of jobs without a way out that are to hold with one.
const AGAIN: [&str; 8] = ["N01", "N02", "N03", "N04", "N05", "N06", "N07", "N09"];
const NO_RIGHTS: &str = "no such rights can be had";
/// Names that no resolver knows (RFC 6761).
const LISTED: &str = "listed.test";
const UNLISTED: &str = "unlisted.test";

/// What was seen, and what the control saw.
pub(super) async fn ask(inside: &Inside<'_>, probes: &[&'static Probe]) -> (Looks, Looks) {
    let (mut looks, mut controls) = (Looks::default(), Looks::default());
    let asked = |id: &str| probes.iter().any(|probe| probe.id == id);
    if asked(REACH) {
        looks.add(REACH, look(inside, rules).await.unwrap_or_else(Look::unknown));
        controls.add(REACH, look(inside, no_rules).await.unwrap_or_else(Look::unknown));
    }
    if asked(KEPT) {
        looks.add(KEPT, twice(inside, Memory::None).await.unwrap_or_else(Look::unknown));
        controls.add(KEPT, twice(inside, Memory::First).await.unwrap_or_else(Look::unknown));
    }
    let again: Vec<_> = probes.iter().copied().filter(|probe| AGAIN.contains(&probe.id)).collect();
    // Of two looks the worse counts.
    looks.extend(Box::pin(with_a_way_out(inside, &again)).await.seen("with a way out"));
    (looks, controls)
}

/// The same looks in jobs that have a way out, and with a neighbour that has one.
async fn with_a_way_out(inside: &Inside<'_>, probes: &[&'static Probe]) -> Looks {
    match plan(rules(1)) {
        Some(plan) => Inside { egress: Some(Arc::new(plan)), ..inside.clone() }.ask(probes).await,
        None => Looks::unknown_of(probes, NO_RIGHTS),
    }
}

/// What stands outside: a server that answers each time anew, or a cache that answers as it did first.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Memory {
    None,
    First,
}

/// One job asks and is over, the next one asks the same: is it answered by whom it asked, or by what the first one left?
async fn twice(inside: &Inside<'_>, memory: Memory) -> Result<Look, String> {
    let outside = Outside::open(move |mut stream, number| {
        let number = if memory == Memory::First { 1 } else { number };
        let _ = stream.read(&mut [0; 4096]);
        let answer = format!("answer {number}");
        let head = format!(
            "HTTP/1.1 200 OK\r\nCache-Control: max-age=600\r\nContent-Length: {}\r\n\r\n",
            answer.len()
        );
        let _ = stream.write_all(format!("{head}{answer}").as_bytes());
    })?;
    let mut answers = Vec::new();
    for _ in 0..2 {
        let words = ["role=door".to_owned(), format!("asks=http://{LISTED}:{}/", outside.port)];
        let mut job = inside.job(words, LONG)?;
        job.egress = Some(Arc::new(plan(rules(outside.port)).ok_or(NO_RIGHTS)?));
        let result = inside.work(&job, Company::default()).await;
        let answer = result.stdout.text.trim().rsplit_once("answer ").map(|(_, number)| number.to_owned());
        answers.push(answer.ok_or_else(|| told(&result))?);
    }
    Ok(match (answers[0].as_str(), answers[1].as_str()) {
        ("1", "2") => Look::held("the second job was answered anew, by whom it asked"),
        ("1", "1") => Look::open("the second job was given the answer to the first"),
        (first, second) => Look::unknown(format!("the answers were {first} and {second}")),
    })
}

/// Somebody outside who counts.
struct Outside {
    port: u16,
    reached: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
}

impl Outside {
    /// Says how each connection is answered, by its number from 1.
    fn open(answer: impl Fn(TcpStream, u64) + Send + 'static) -> Result<Self, String> {
        let problem = |error: std::io::Error| format!("nobody can listen on the loopback: {error}");
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(problem)?;
        let port = listener.local_addr().map_err(problem)?.port();
        let reached = Arc::new(AtomicU64::new(0));
        let over = Arc::new(AtomicBool::new(false));
        let (count, ends) = (reached.clone(), over.clone());
        thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                if ends.load(Ordering::SeqCst) {
                    break;
                }
                answer(stream, count.fetch_add(1, Ordering::SeqCst) + 1);
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
    let other = Outside::open(|_, _| {})?;
    // Whoever says a word to the listed one is sent on to an address of the host's.
    let elsewhere = format!("http://127.0.0.1:{}/", other.port);
    let outside = Outside::open(move |mut stream, _| {
        if stream.read(&mut [0; 4096]).is_ok_and(|read| read > 0) {
            let head = format!("HTTP/1.1 302 Found\r\nLocation: {elsewhere}\r\nContent-Length: 0\r\n\r\n");
            let _ = stream.write_all(head.as_bytes());
        }
    })?;
    let asks = [
        format!("{LISTED}:{}", outside.port),
        format!("http://{LISTED}:{}/", outside.port),
        format!("{UNLISTED}:{}", outside.port),
        format!("127.0.0.1:{}", outside.port),
        format!("localhost:{}", outside.port),
        "169.254.169.254:80".to_owned(),
        format!("{LISTED}:{}", other.port),
    ];
    let mut job = inside.job(["role=door".to_owned(), format!("asks={}", asks.join(","))], LONG)?;
    job.egress = Some(Arc::new(plan(rules(outside.port)).ok_or(NO_RIGHTS)?));
    let result = inside.work(&job, Company::default()).await;
    let reached = outside.reached.load(Ordering::SeqCst) + other.reached.load(Ordering::SeqCst);
    let egress = result.egress.as_ref().ok_or_else(|| told(&result))?;
    // Where it was sent on to was asked for, too.
    judge(asks.len() as u64 + 1, reached, egress).map_err(|why| format!("{why}: {}", told(&result)))
}

/// Those of what is asked for that lead to the listed name at its port.
const ALLOWED: u64 = 2;

/// The listed name each time and nothing else, and all of it in the record.
fn judge(asked: u64, reached: u64, egress: &Egress) -> Result<Look, &'static str> {
    let recorded = egress.connections.len() as u64 == egress.made + egress.refused
        && egress.made + egress.refused == asked
        && egress.made == reached;
    let seen = format!("{reached} of {asked} that were asked for were reached, {} refused", egress.refused);
    match reached {
        0..ALLOWED => Err("not even the listed name was reached each time"),
        ALLOWED if !recorded => Ok(Look::open(format!("{seen}, and the record says otherwise"))),
        ALLOWED => Ok(Look::held(seen)),
        _ => Ok(Look::open(seen)),
    }
}

#[cfg(test)]
mod tests {
    use egress::{Connection, Ended};

    use super::*;
    use crate::verdict::Seen;

    /// A record of so many, of which so many are listed.
    fn record(made: u64, refused: u64, listed: u64) -> Egress {
        let one = || Connection {
            via: "proxy".to_owned(),
            to: format!("{LISTED}:80"),
            address: None,
            sent: 0,
            received: 0,
            open_us: 0,
            ended: Ended::Closed,
            reason: None,
            why: None,
        };
        Egress { made, refused, connections: (0..listed).map(|_| one()).collect(), ..Egress::default() }
    }

    fn seen(reached: u64, egress: &Egress) -> Result<Seen, &'static str> {
        judge(8, reached, egress).map(|look| look.seen)
    }

    #[test]
    fn only_the_listed_name_with_all_of_it_in_the_record_has_held() {
        assert_eq!(seen(2, &record(2, 6, 8)), Ok(Seen::Held));
    }

    #[test]
    fn whatever_else_is_reached_is_open_recorded_or_not() {
        assert_eq!(seen(3, &record(3, 5, 8)), Ok(Seen::Open));
        assert_eq!(seen(7, &record(2, 6, 8)), Ok(Seen::Open));
    }

    #[test]
    fn a_record_that_lacks_one_or_tells_of_more_is_open() {
        for record in [record(2, 5, 7), record(2, 6, 7), record(1, 6, 7), record(1, 7, 8), record(3, 6, 9)] {
            assert_eq!(seen(2, &record), Ok(Seen::Open), "{record:?}");
        }
    }

    #[test]
    fn who_reached_not_even_the_listed_name_has_shown_nothing() {
        assert!(seen(0, &record(0, 8, 8)).is_err() && seen(1, &record(1, 7, 8)).is_err());
    }
}
