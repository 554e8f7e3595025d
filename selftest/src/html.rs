//! The report as one file that a browser shows: no script, nothing loaded, everything escaped.

use std::fmt::{self, Display, Write};

use crate::{
    page::sum,
    report::{Finding, Report},
};

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:72rem;padding:0 1rem;color:#1a1a1a;background:#fff}\
table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.35rem .6rem;border-bottom:1px solid #ddd;vertical-align:top}\
thead th{position:sticky;top:0;background:#fff}td.id{font-family:ui-monospace,monospace;white-space:nowrap}small{color:#555}\
summary{cursor:pointer}.blocked,.contained{color:#17692f}.residual{color:#8a5a00}.unverified,.not_applicable{color:#555}\
.exposed,.void{color:#fff;background:#b3261e;padding:0 .3rem;font-weight:600}\
@media(prefers-color-scheme:dark){body,thead th{background:#161616;color:#e6e6e6}th,td{border-color:#333}small{color:#aaa}\
.blocked,.contained{color:#7ad48f}.residual{color:#e0b050}.unverified,.not_applicable{color:#aaa}}";

/// Text in which nothing is markup.
struct Plain<'a>(&'a str);

impl Display for Plain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.chars() {
            match character {
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '&' => f.write_str("&amp;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                other => f.write_char(other)?,
            }
        }
        Ok(())
    }
}

/// The whole page.
#[must_use]
pub fn render(report: &Report) -> String {
    Page(report).to_string()
}

struct Page<'a>(&'a Report);

impl Display for Page<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let report = self.0;
        let held = if report.holds { "holds" } else { "does not hold" };
        write!(
            f,
            "<!doctype html><html lang=en><meta charset=utf-8><title>mayfly selftest: {held}</title><style>{STYLE}</style>"
        )?;
        write!(
            f,
            "<h1>mayfly selftest: {held}</h1><p><small>mayfly {}, Linux {}, image {}</small></p><ul>",
            Plain(&report.version),
            Plain(&report.kernel),
            Plain(&report.image)
        )?;
        for tier in &report.tiers {
            write!(f, "<li>{}</li>", Plain(&sum(tier)))?;
        }
        for (tier, why) in &report.left_out {
            write!(f, "<li>{}: not tested: {}</li>", Plain(tier), Plain(why))?;
        }
        f.write_str("</ul><table><thead><tr><th>probe<th>what is to be so")?;
        for tier in &report.tiers {
            write!(f, "<th>{}", Plain(&tier.tier))?;
        }
        f.write_str("</thead><tbody>")?;
        for probe in report.probes() {
            write!(
                f,
                "<tr><td class=id>{}<td>{}<br><small>{}; asked by {}</small>",
                Plain(probe.id),
                Plain(probe.question),
                Plain(probe.mechanism),
                Plain(probe.source)
            )?;
            for tier in &report.tiers {
                match report.of(&tier.tier, probe.id) {
                    Some(finding) => cell(f, finding)?,
                    None => f.write_str("<td>")?,
                }
            }
        }
        f.write_str("</tbody></table></html>\n")
    }
}

fn cell(f: &mut fmt::Formatter<'_>, finding: &Finding) -> fmt::Result {
    let verdict = finding.verdict;
    write!(
        f,
        "<td><details><summary class={}>{}</summary><small>{}",
        verdict.name(),
        verdict.shown(),
        Plain(&finding.why)
    )?;
    if let Some(control) = &finding.control {
        write!(f, "<br>control: {}", Plain(&control.evidence))?;
    }
    f.write_str("</small></details>")
}
