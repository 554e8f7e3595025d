//! The report as a person reads it: a table, then what needs a reason.

use std::io::{self, Write};

use crate::{
    report::{Report, TierReport},
    verdict::Verdict,
};

/// Columns of a terminal that nobody has narrower.
const WIDTH: usize = 100;
/// Columns of one tier.
const CELL: usize = 12;
/// What is told one by one, in this order, and under which heading.
const TOLD: [(Verdict, &str); 4] = [
    (Verdict::Exposed, "EXPOSED: this is to hold and does not"),
    (Verdict::Void, "VOID: the control held, so these probes say nothing"),
    (Verdict::Residual, "Residual risks, which the tier leaves and which count as not passed"),
    (Verdict::Unverified, "Not verified, which counts as not passed"),
];

/// The groups of probes, by the first letter of their ids.
const GROUPS: [(char, &str); 9] = [
    ('P', "privileges"),
    ('F', "files and devices"),
    ('I', "information"),
    ('X', "other sandboxes, and earlier ones"),
    ('N', "network"),
    ('R', "resources"),
    ('A', "artifacts"),
    ('C', "control channel and runtime"),
    ('M', "queue and store"),
];

/// Writes the report.
pub fn print(report: &Report, out: &mut impl Write) -> io::Result<()> {
    let names: Vec<_> = report.tiers.iter().map(|tier| tier.tier.as_str()).collect();
    let question = WIDTH.saturating_sub(CELL * names.len() + 6).max(32);
    write!(out, "{:6}{:question$}", "", "")?;
    names.iter().try_for_each(|name| write!(out, "{name:>CELL$}"))?;
    writeln!(out)?;
    let mut group = None;
    for probe in report.probes() {
        let letter = probe.id.chars().next();
        if letter != group {
            let title =
                GROUPS.iter().find(|(first, _)| Some(*first) == letter).map_or("", |(_, title)| title);
            writeln!(out, "{title}")?;
            group = letter;
        }
        write!(out, "  {:4}{:question$}", probe.id, short(probe.question, question - 1))?;
        for name in &names {
            let cell = report.of(name, probe.id).map_or("", |finding| finding.verdict.shown());
            write!(out, "{cell:>CELL$}")?;
        }
        writeln!(out)?;
    }
    for (verdict, heading) in TOLD {
        let all = report.together(verdict);
        if all.is_empty() {
            continue;
        }
        writeln!(out, "\n{heading}")?;
        for (ids, tiers, why) in all {
            writeln!(out, "  {} on {}", ids.join(" "), tiers.join(", "))?;
            paragraph(out, why)?;
        }
    }
    writeln!(out)?;
    report.tiers.iter().try_for_each(|tier| writeln!(out, "{}", sum(tier)))?;
    for (tier, why) in &report.left_out {
        writeln!(out, "{tier}: not tested: {why}")?;
    }
    out.flush()
}

/// One tier in one line.
#[must_use]
pub fn sum(tier: &TierReport) -> String {
    let count = |verdict| tier.count(verdict);
    let (blocked, contained) = (count(Verdict::Blocked), count(Verdict::Contained));
    format!(
        "{}: {} of {} held ({blocked} blocked, {contained} contained); {} exposed, {} void, {} residual, {} not verified, {} not applicable",
        tier.tier,
        blocked + contained,
        tier.findings.len(),
        count(Verdict::Exposed),
        count(Verdict::Void),
        count(Verdict::Residual),
        count(Verdict::Unverified),
        count(Verdict::NotApplicable),
    )
}

/// As much of a text as fits.
fn short(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let cut: String = text.chars().take(width - 1).collect();
    let at_word = cut.rfind(' ').filter(|end| *end > width / 2).unwrap_or(cut.len());
    format!("{}…", cut[..at_word].trim_end_matches([',', ';', ' ', '(']))
}

/// Indented, and broken between words.
fn paragraph(out: &mut impl Write, text: &str) -> io::Result<()> {
    let mut line = String::new();
    for word in text.split_whitespace() {
        if line.chars().count() + word.chars().count() + 1 > WIDTH - 6 {
            writeln!(out, "      {line}")?;
            line.clear();
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    writeln!(out, "      {line}")
}
