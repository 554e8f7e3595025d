//! A moment as lines of text. Pure: what it is drawn on is told by its size.
//!
//! Names and reasons come from others: each goes through `cell`, which lets no control character by and cuts it to its
//! place. The only escapes in a line are those that are written here.

use std::fmt::Write;

use pool::{Source, Tier};
use scheduler::{
    EndedJob,
    live::{Snapshot, TierNow},
    shown,
};
use worker::printable;

/// Eight heights of a bar.
const HEIGHTS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// What is drawn on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Canvas {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) colours: bool,
}

#[derive(Debug, Clone, Copy)]
enum Style {
    Strong,
    Faint,
    Bad,
}

impl Canvas {
    /// All lines that fit. `place`: which process of how many it is.
    pub(super) fn lines(self, now: &Snapshot, place: (usize, usize)) -> Vec<String> {
        let mut lines = self.head(now, place);
        lines.extend(now.unready.iter().map(|why| self.line(Style::Bad, &format!("not ready: {why}"))));
        lines.push(String::new());
        lines.push(self.title(&columns(&[
            ("tier", 8),
            ("ready", 7),
            ("leased", 8),
            ("making", 8),
            ("quarantined", 13),
            ("wanted", 0),
        ])));
        lines.extend(now.tiers.iter().filter(|tier| tier.offered).map(|tier| self.tier(tier)));
        self.jobs(now, &mut lines);
        self.tenants(now, &mut lines);
        self.lately(now, &mut lines);
        lines.truncate(self.height);
        lines
    }

    fn head(self, now: &Snapshot, (number, all): (usize, usize)) -> Vec<String> {
        let who = &now.who;
        let state = match (now.stopping, now.unready.is_empty()) {
            (true, _) => "stopping",
            (false, true) => "ready",
            (false, false) => "not ready",
        };
        let which = if all > 1 { format!("  ({number} of {all}, Tab)") } else { String::new() };
        let up = humantime::format_duration(std::time::Duration::from_secs(now.up_us / 1_000_000));
        let outcomes: Vec<_> =
            now.outcomes.iter().map(|(name, count)| format!("{} {count}", name.replace('_', " "))).collect();
        let last: u32 = now.per_second.iter().rev().skip(1).take(10).sum();
        let warm = now.warm_share.map_or(String::new(), |share| format!("  warm {:.0} %", share * 100.0));
        vec![
            self.line(
                Style::Strong,
                &format!("mayfly {} on {}  pid {}  up {up}  {state}{which}", who.verb, who.host, who.pid),
            ),
            self.plain(&format!(
                "running {} of {}   waiting {}   ended {}: {}{warm}",
                now.running_in_all,
                now.slots,
                now.waiting_in_all,
                now.ended,
                outcomes.join(", ")
            )),
            self.plain(&format!("{} {:.1} jobs/s", spark(&now.per_second), f64::from(last) / 10.0)),
        ]
    }

    fn tier(self, tier: &TierNow) -> String {
        let sum = |of: fn(&pool::KindStatus) -> usize| tier.kinds.iter().map(of).sum::<usize>().to_string();
        let numbers = columns(&[
            (tier.tier.name(), 8),
            (&sum(|kind| kind.ready), 7),
            (&sum(|kind| kind.leased), 8),
            (&sum(|kind| kind.making), 8),
            (&sum(|kind| kind.quarantined), 13),
            (&sum(|kind| kind.target), 6),
        ]);
        match &tier.resting {
            Some(resting) => {
                self.line(Style::Bad, &format!("{numbers}  {}: {}", resting.state(), resting.why))
            }
            None => self.plain(&numbers),
        }
    }

    fn jobs(self, now: &Snapshot, lines: &mut Vec<String>) {
        let most = self.share(5);
        let job = self.width.saturating_sub(44).clamp(16, 60);
        lines.push(String::new());
        lines.push(self.title(&columns(&[("running", job), ("tier", 8), ("phase", 10), ("time", 12)])));
        for running in now.running.iter().take(most) {
            let name = cell(&running.job.to_string(), job - 1);
            let (phase, time) = (running.phase.name(), shown(running.elapsed_us));
            let why = running.waits_for.as_deref().unwrap_or_default();
            lines.push(self.plain(&format!(
                "{}{why}",
                columns(&[(&name, job), (running.tier.name(), 8), (phase, 10), (&time, 12)])
            )));
        }
        let more = now.running_in_all - now.running.len().min(most);
        if more > 0 {
            lines.push(self.line(Style::Faint, &format!("and {more} more")));
        }
        lines.push(String::new());
        lines.push(self.title(&columns(&[("waiting", job), ("jobs", 8), ("why", 0)])));
        for lane in now.waiting.iter().take(most) {
            let tenant = lane.tenant.as_deref().unwrap_or("jobs");
            let tier = lane.tier.map_or(String::new(), |tier| format!(" on {tier}"));
            let name = cell(&format!("{tenant}{tier}{}", if lane.high { ", high" } else { "" }), job - 1);
            let jobs = lane.jobs.to_string();
            lines.push(self.plain(&columns(&[(&name, job), (&jobs, 8), (&lane.why, 0)])));
        }
    }

    fn tenants(self, now: &Snapshot, lines: &mut Vec<String>) {
        if now.tenants.is_empty() {
            return;
        }
        lines.push(String::new());
        let titles = [("tenant", 40), ("running", 10), ("waiting", 10), ("ended", 10), ("failed", 0)];
        lines.push(self.title(&columns(&titles)));
        let most = self.share(8);
        for tenant in now.tenants.iter().take(most) {
            let running = match tenant.most {
                Some(most) => format!("{}/{most}", tenant.running),
                None => tenant.running.to_string(),
            };
            let [waiting, ended, failed] =
                [tenant.waiting, tenant.ended, tenant.failed].map(|jobs| jobs.to_string());
            let name = cell(&tenant.tenant, 38);
            let cells = [(&name, 40), (&running, 10), (&waiting, 10), (&ended, 10), (&failed, 0)];
            lines.push(self.plain(&columns(&cells.map(|(text, width)| (text.as_str(), width)))));
        }
        let more = now.tenants_in_all.saturating_sub(now.tenants.len().min(most));
        if more > 0 {
            lines.push(self.line(Style::Faint, &format!("and {more} more")));
        }
    }

    /// Lines of a list. On a screen, what comes after it is to be seen as well.
    fn share(self, parts: usize) -> usize {
        if self.height == usize::MAX { usize::MAX } else { (self.height / parts).max(3) }
    }

    fn lately(self, now: &Snapshot, lines: &mut Vec<String>) {
        lines.push(String::new());
        lines.push(self.title(&columns(&[("phase", 12), ("p50", 14), ("p95", 0)])));
        for phase in &now.phases {
            let times = [shown(phase.p50_us), shown(phase.p95_us)];
            lines.push(self.plain(&columns(&[(&phase.phase, 12), (&times[0], 14), (&times[1], 0)])));
        }
        let name = |job: &EndedJob| cell(&job.job.to_string(), 38);
        let outcome = |job: &EndedJob| job.outcome.name().replace('_', " ");
        if !now.failures.is_empty() {
            lines.push(String::new());
            lines.push(self.title("last failures"));
        }
        for job in now.failures.iter().take(self.share(8).min(8)) {
            let why = job.why.as_deref().unwrap_or_default();
            lines.push(self.plain(&columns(&[(&name(job), 40), (&outcome(job), 15), (why, 0)])));
        }
        if !now.recent.is_empty() {
            let titles = [("ended lately", 40), ("how", 15), ("tier", 8), ("sandbox", 9), ("took", 0)];
            lines.push(String::new());
            lines.push(self.title(&columns(&titles)));
        }
        for job in now.recent.iter().take(self.share(6).min(12)) {
            let tier = job.tier.map_or("-", Tier::name);
            let source = job.source.map_or("-", |source| match source {
                Source::Warm => "warm",
                Source::Cold => "cold",
            });
            let (name, outcome, took) = (name(job), outcome(job), shown(job.took_us));
            let cells = [(name.as_str(), 40), (&outcome, 15), (tier, 8), (source, 9), (&took, 0)];
            lines.push(self.plain(&columns(&cells)));
        }
    }

    fn plain(self, text: &str) -> String {
        cell(text, self.width)
    }

    fn title(self, text: &str) -> String {
        self.line(Style::Faint, text)
    }

    fn line(self, style: Style, text: &str) -> String {
        let text = self.plain(text);
        let code = match style {
            Style::Strong => "1",
            Style::Faint => "2",
            Style::Bad => "31",
        };
        if self.colours { format!("\x1b[{code}m{text}\x1b[0m") } else { text }
    }
}

/// Texts side by side, each with its width; 0: as it is.
fn columns(cells: &[(&str, usize)]) -> String {
    cells.iter().fold(String::new(), |mut line, (text, width)| {
        // A String takes everything.
        let _ = write!(line, "{text:<width$}");
        line
    })
}

/// Text that is obeyed by nothing, of so many letters at most.
fn cell(text: &str, width: usize) -> String {
    let text = printable(text.as_bytes());
    if text.chars().count() <= width {
        return text;
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

fn spark(counts: &[u32]) -> String {
    let most = counts.iter().copied().max().unwrap_or_default().max(1) as usize;
    let height = |count: &u32| match *count as usize {
        0 => ' ',
        count => HEIGHTS[(count * (HEIGHTS.len() - 1)).div_ceil(most)],
    };
    counts.iter().map(height).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hostile() -> Snapshot {
        let evil = "\\u001b]0;owned\\u0007\\u009b2J\\u202e";
        let job = format!("{{\"tenant\":\"{evil}\",\"id\":\"{evil}\"}}");
        let text = format!(
            r#"{{"at_ms":0,"who":{{"pid":1,"verb":"{evil}","host":"{evil}","jobs":"","results":"","total":null}},
            "up_us":1,"unready":["{evil}"],"stopping":false,"slots":4,
            "tiers":[{{"tier":"vm","offered":true,"kinds":[],
                "resting":{{"tier":"vm","why":"{evil}","rests_us":1,"tries":1,"again_us":1}}}}],
            "running":[{{"job":{job},"tier":"vm","phase":"run","attempt":1,"elapsed_us":5,"waits_for":"{evil}"}}],
            "running_in_all":9,"waiting":[{{"tenant":"{evil}","tier":"vm","high":true,"jobs":3,"why":"{evil}"}}],
            "waiting_in_all":3,"per_second":[0,1,8],"ended":2,"outcomes":[["{evil}",2]],"warm_share":0.5,"retries":0,
            "phases":[{{"phase":"{evil}","jobs":1,"p50_us":1,"p95_us":2}}],
            "tenants":[{{"tenant":"{evil}","running":1,"most":2,"waiting":3,"ended":4,"failed":5}}],"tenants_in_all":8,
            "recent":[{{"job":{job},"outcome":"succeeded","tier":"vm","source":"warm","at_ms":0,"queued_us":0,"took_us":0,
                "why":null}}],
            "failures":[{{"job":{job},"outcome":"failed","tier":null,"source":null,"at_ms":0,"queued_us":0,"took_us":0,
                "why":"{evil}"}}]}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn no_name_reaches_the_terminal_as_anything_but_letters() {
        for (width, height) in [(20, 5), (80, 24), (300, usize::MAX)] {
            let canvas = Canvas { width, height, colours: false };
            let lines = canvas.lines(&hostile(), (1, 2));
            assert!(lines.len() <= height);
            for line in &lines {
                assert!(line.chars().count() <= width, "{line}");
                assert!(!line.chars().any(|it| it.is_control() || it == '\u{202e}'), "{line:?}");
            }
        }
        let lines =
            Canvas { width: 300, height: usize::MAX, colours: true }.lines(&hostile(), (1, 1)).join("\n");
        let own =
            ["\x1b[1m", "\x1b[2m", "\x1b[31m", "\x1b[0m"].iter().fold(lines, |all, own| all.replace(own, ""));
        assert!(
            !own.contains('\x1b') && own.contains("\\x1b]0;owned") && own.contains("and 8 more"),
            "{own}"
        );
    }
}
