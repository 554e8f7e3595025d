//! What a job reached and what it was refused: the part `egress` of its result.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::refusal::{Reason, Refusal};

/// Connections that are listed; the rest are only counted.
const LISTED: usize = 100;
/// Refusals of one job that have a line of the log each; the rest have one together.
const LOGGED: u64 = 20;
/// What is shown of a host that is none.
const LONGEST_SHOWN: usize = 128;

/// What a job reached, and what it was refused. Each fact is the host's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Egress {
    /// Connections that were made.
    pub made: u64,
    /// Connections that were refused, were cut at a limit, or could not be made. Some of these are among `made`, too.
    pub refused: u64,
    /// Why, in one word each, and how often.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub reasons: BTreeMap<Reason, u64>,
    /// Bytes that went out.
    pub sent: u64,
    /// Bytes that came in.
    pub received: u64,
    /// The first 100 of both kinds, in the order in which they were asked for.
    pub connections: Vec<Connection>,
}

impl Egress {
    /// Of a job that was tried before: what it did then counts, too.
    #[must_use]
    pub fn after(mut self, before: Self) -> Self {
        self.made += before.made;
        self.refused += before.refused;
        for (reason, times) in before.reasons {
            *self.reasons.entry(reason).or_default() += times;
        }
        self.sent += before.sent;
        self.received += before.received;
        self.connections.splice(0..0, before.connections);
        self.connections.truncate(LISTED);
        self
    }
}

/// One connection that a job asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Connection {
    /// By which way: `proxy`, or the tunnel's name.
    pub via: String,
    /// What was asked for, as `host:port`.
    pub to: String,
    /// To which address it was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Bytes that went out.
    pub sent: u64,
    /// Bytes that came in.
    pub received: u64,
    /// How long it was open, in microseconds.
    pub open_us: u64,
    /// How it ended.
    pub ended: Ended,
    /// Why it was refused, in one word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// Why it was refused, as the job was told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Ended {
    /// Both sides were done.
    Closed,
    /// One side broke it off.
    Failed,
    /// It was not made, or was cut at a limit.
    Refused,
    /// It was open when the job ended.
    JobEnded,
}

/// Who asks, for the log.
#[derive(Debug)]
pub(crate) struct Asker {
    pub(crate) tenant: String,
    pub(crate) job: String,
}

/// The record while it is written.
#[derive(Debug)]
pub(crate) struct Book {
    asker: Asker,
    pages: Mutex<Pages>,
}

#[derive(Debug, Default)]
struct Pages {
    made: u64,
    refused: BTreeMap<Reason, u64>,
    listed: Vec<Arc<Entry>>,
    /// Bytes of those that are not listed are counted here when they end.
    sent: u64,
    received: u64,
}

/// One connection while it is open.
#[derive(Debug)]
pub(crate) struct Entry {
    via: String,
    to: String,
    address: Option<SocketAddr>,
    began: Instant,
    sent: AtomicU64,
    received: AtomicU64,
    end: Mutex<Option<End>>,
}

#[derive(Debug, Clone)]
struct End {
    open_us: u64,
    ended: Ended,
    refusal: Option<(Reason, String)>,
}

impl Book {
    pub(crate) fn new(asker: Asker) -> Self {
        Self { asker, pages: Mutex::default() }
    }

    /// A connection is open.
    pub(crate) fn made(&self, via: &str, to: &str, address: SocketAddr) -> Arc<Entry> {
        let entry = Arc::new(Entry::new(via, to, Some(address)));
        let mut pages = lock(&self.pages);
        pages.made += 1;
        pages.list(&entry);
        entry
    }

    /// A connection was not made.
    pub(crate) fn refused(&self, via: &str, to: &str, refusal: &Refusal) {
        let entry = Arc::new(Entry::new(via, to, None));
        entry.end(Ended::Refused, Some(refusal));
        let mut pages = lock(&self.pages);
        let is_logged = pages.refuse(refusal.reason());
        pages.list(&entry);
        drop(pages);
        if is_logged {
            self.log(&entry);
        }
    }

    /// A connection has ended.
    pub(crate) fn over(&self, entry: &Arc<Entry>) {
        entry.end(Ended::JobEnded, None);
        let reason =
            lock(&entry.end).as_ref().and_then(|end| end.refusal.as_ref().map(|(reason, _)| *reason));
        let mut pages = lock(&self.pages);
        let is_logged = reason.is_none_or(|reason| pages.refuse(reason));
        if !pages.listed.iter().any(|listed| Arc::ptr_eq(listed, entry)) {
            pages.sent += entry.sent.load(Ordering::Relaxed);
            pages.received += entry.received.load(Ordering::Relaxed);
        }
        drop(pages);
        if is_logged {
            self.log(entry);
        }
    }

    fn log(&self, entry: &Entry) {
        let Asker { tenant, job } = &self.asker;
        let connection = entry.shown();
        let Connection { via, to, sent, received, .. } = &connection;
        let address = connection.address.as_deref().unwrap_or("none");
        let (ended, why) = (connection.ended, connection.why.as_deref().unwrap_or_default());
        tracing::info!(tenant, job, via, to, address, sent, received, ?ended, why, "egress");
    }

    /// The last line: what is told of the job, once there is nothing more to come.
    pub(crate) fn close(&self) -> Egress {
        let egress = self.egress();
        if let Some(more @ 1..) = egress.refused.checked_sub(LOGGED) {
            let (Asker { tenant, job }, reasons) = (&self.asker, &egress.reasons);
            tracing::info!(tenant, job, more, ?reasons, "egress: refusals that have no line of their own");
        }
        egress
    }

    /// What there is to tell.
    fn egress(&self) -> Egress {
        let pages = lock(&self.pages);
        let connections: Vec<_> = pages.listed.iter().map(|entry| entry.shown()).collect();
        Egress {
            made: pages.made,
            refused: pages.refused.values().sum(),
            reasons: pages.refused.clone(),
            sent: pages.sent + connections.iter().map(|it| it.sent).sum::<u64>(),
            received: pages.received + connections.iter().map(|it| it.received).sum::<u64>(),
            connections,
        }
    }
}

impl Pages {
    /// Counts it, and says whether it is among those that are logged.
    fn refuse(&mut self, reason: Reason) -> bool {
        *self.refused.entry(reason).or_default() += 1;
        self.refused.values().sum::<u64>() <= LOGGED
    }

    fn list(&mut self, entry: &Arc<Entry>) {
        if self.listed.len() < LISTED {
            self.listed.push(entry.clone());
        }
    }
}

impl Entry {
    fn new(via: &str, to: &str, address: Option<SocketAddr>) -> Self {
        Self {
            via: via.to_owned(),
            // What is refused may be anything.
            to: to.escape_default().take(LONGEST_SHOWN).collect(),
            address,
            began: Instant::now(),
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            end: Mutex::default(),
        }
    }

    pub(crate) fn sent(&self, bytes: usize) {
        self.sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn received(&self, bytes: usize) {
        self.received.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// How it ended. The first to know counts.
    pub(crate) fn end(&self, ended: Ended, refusal: Option<&Refusal>) {
        lock(&self.end).get_or_insert_with(|| End {
            open_us: self.began.elapsed().as_micros() as u64,
            ended,
            refusal: refusal.map(|refusal| (refusal.reason(), refusal.to_string())),
        });
    }

    fn shown(&self) -> Connection {
        let end = lock(&self.end).clone();
        let (reason, why) = end.as_ref().and_then(|end| end.refusal.clone()).unzip();
        Connection {
            via: self.via.clone(),
            to: self.to.clone(),
            address: self.address.map(|address| address.to_string()),
            sent: self.sent.load(Ordering::Relaxed),
            received: self.received.load(Ordering::Relaxed),
            open_us: end.as_ref().map_or(self.began.elapsed().as_micros() as u64, |end| end.open_us),
            ended: end.map_or(Ended::JobEnded, |end| end.ended),
            reason,
            why,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::fmt::{self, Write};

    use tracing::{Dispatch, Event, Metadata, Subscriber, field::Field, span};

    use super::*;

    #[test]
    fn a_crowd_is_counted_whole_and_listed_in_part() {
        let book = Book::new(Asker { tenant: "acme".into(), job: "one".into() });
        for _ in 0..LISTED + 5 {
            let entry = book.made("proxy", "a.b:80", ([192, 0, 2, 1], 80).into());
            entry.sent(3);
            entry.received(5);
            entry.end(Ended::Closed, None);
            book.over(&entry);
        }
        book.refused("proxy", "x\n:80", &Refusal::Request("it is no request"));
        let egress = book.egress();
        assert_eq!((egress.made, egress.refused), (105, 1));
        assert_eq!((egress.sent, egress.received), (315, 525));
        assert_eq!(egress.connections.len(), LISTED);
        assert_eq!(egress.connections[0].ended, Ended::Closed);
    }

    #[test]
    fn a_connection_that_was_refused_after_it_was_made_is_counted_as_both() {
        let book = Book::new(Asker { tenant: "acme".into(), job: "one".into() });
        for refusal in [Refusal::Bytes(10), Refusal::Sni("it is no TLS".into()), Refusal::Bytes(10)] {
            let entry = book.made("proxy", "a.b:80", ([192, 0, 2, 1], 80).into());
            entry.end(Ended::Refused, Some(&refusal));
            // Whoever comes later with another end changes nothing.
            entry.end(Ended::Closed, None);
            book.over(&entry);
        }
        let egress = book.egress();
        assert_eq!((egress.made, egress.refused), (3, 3));
        assert_eq!(egress.reasons, BTreeMap::from([(Reason::Bytes, 2), (Reason::Sni, 1)]));
    }

    #[test]
    fn what_a_job_did_in_an_earlier_try_counts_and_comes_first() {
        let tried = |to: &str, times: usize| {
            let book = Book::new(Asker { tenant: "acme".into(), job: "one".into() });
            for _ in 0..times {
                let entry = book.made("proxy", to, ([192, 0, 2, 1], 80).into());
                entry.sent(2);
                entry.received(3);
                book.over(&entry);
                book.refused("proxy", to, &Refusal::Bytes(10));
            }
            book.egress()
        };
        let both = tried("late:80", 40).after(tried("early:80", 30));
        assert_eq!((both.made, both.refused, both.sent, both.received), (70, 70, 140, 210));
        assert_eq!(both.reasons, BTreeMap::from([(Reason::Bytes, 70)]));
        let listed: Vec<_> = both.connections.iter().map(|it| it.to.as_str()).collect();
        assert_eq!((listed.len(), listed[59], listed[60]), (LISTED, "early:80", "late:80"));
    }

    /// Hears what is logged.
    #[derive(Default)]
    struct Listener(Mutex<Vec<String>>);

    impl Subscriber for Listener {
        fn enabled(&self, _: &Metadata<'_>) -> bool {
            true
        }

        fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
            span::Id::from_u64(1)
        }

        fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

        fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

        fn event(&self, event: &Event<'_>) {
            let mut line = String::new();
            event.record(&mut |field: &Field, value: &dyn fmt::Debug| {
                write!(line, "{field}={value:?} ").unwrap();
            });
            lock(&self.0).push(line);
        }

        fn enter(&self, _: &span::Id) {}

        fn exit(&self, _: &span::Id) {}
    }

    #[test]
    fn a_job_that_is_refused_for_ever_fills_no_log() {
        let heard = Arc::new(Listener::default());
        // Of one alone, tracing asks whichever thread first comes by a line whether it is heard: another test's may not hear.
        let _other = Dispatch::new(Listener::default());
        tracing::subscriber::with_default(heard.clone(), || {
            let book = Book::new(Asker { tenant: "acme".into(), job: "one".into() });
            for _ in 0..1000 {
                book.refused("proxy", "a.b:80", &Refusal::Bytes(10));
                let entry = book.made("proxy", "a.b:80", ([192, 0, 2, 1], 80).into());
                entry.end(Ended::Refused, Some(&Refusal::Sni("it is no TLS".into())));
                book.over(&entry);
            }
            assert_eq!(book.close().refused, 2000);
        });
        let lines = lock(&heard.0);
        assert_eq!(lines.len() as u64, LOGGED + 1);
        let last = lines.last().unwrap();
        assert!(last.contains("more=1980 reasons={Bytes: 1000, Sni: 1000}"), "{last}");
    }

    #[test]
    fn what_a_job_asks_for_is_shown_harmless() {
        let book = Book::new(Asker { tenant: "acme".into(), job: "one".into() });
        book.refused("proxy", &format!("\x1b[2J{}", "a".repeat(1000)), &Refusal::Request("it is no request"));
        let shown = &book.egress().connections[0];
        assert!(shown.to.starts_with("\\u{1b}[2Ja") && shown.to.len() <= LONGEST_SHOWN, "{}", shown.to);
        assert_eq!((shown.ended, shown.reason), (Ended::Refused, Some(Reason::Request)));
    }
}
