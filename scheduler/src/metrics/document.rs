//! `docs/metrics.md`, made of the declarations. `MAYFLY_WRITE_DOCS=1 cargo test -p scheduler document` writes it.

use std::{env, fmt::Write, fs, path::Path};

use super::{
    families::{DECLARED, Kind},
    labels::{NO_TIER, OTHER, Values},
};

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md");

fn page() -> String {
    let mut page = format!(
        "# Metrics\n\n\
         `mayfly serve` shows them at `/metrics` of `metrics.listen`, `mayfly batch --metrics ADDRESS` while it runs. [runbook.md](runbook.md)\n\
         says what the alerts on them mean.\n\n\
         This page is made of the declarations in `scheduler/src/metrics/families.rs`; a test fails when it is not current\n\
         (`MAYFLY_WRITE_DOCS=1 cargo test -p scheduler document` writes it).\n\n\
         Labels have closed sets of values: never the id of a job or a sandbox. `tenant` is one of the configuration's\n\
         tenants, or `{OTHER}`; `image` is the name of an image without its digest: one that `[[pool.keep]]` names, one of 64 others that the pool has, or `{OTHER}`;\n\
         `tier` is `{NO_TIER}` for what never had one. What has at most two labels is there from the start, at 0. Times are in seconds; a\n\
         histogram's are cumulative buckets up to 10 minutes, or 8 hours.\n\n\
         | metric | kind | labels | what it says |\n| --- | --- | --- | --- |\n"
    );
    for family in DECLARED {
        let kind = match family.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Seconds => "histogram, 10 min",
            Kind::LongSeconds => "histogram, 8 h",
        };
        let labels: Vec<_> = family.labels.iter().map(|label| format!("`{}`", label.name())).collect();
        let (name, help) = (family.name, family.help);
        let _ = writeln!(page, "| `{name}` | {kind} | {} | {help} |", labels.join(" "));
    }
    page.push_str("\n## Values of labels\n\n| label | of | values |\n| --- | --- | --- |\n");
    let mut seen = Vec::new();
    for family in DECLARED {
        for label in family.labels.iter().filter(|label| !seen.contains(*label)).collect::<Vec<_>>() {
            if let Values::Closed(values) = label.values() {
                let of: Vec<_> = DECLARED
                    .iter()
                    .filter(|family| family.labels.contains(label))
                    .map(|family| format!("`{}`", family.name))
                    .collect();
                let of = if of.len() > 3 { format!("{} families", of.len()) } else { of.join(", ") };
                let values: Vec<_> = values.iter().map(|value| format!("`{value}`")).collect();
                let _ = writeln!(page, "| `{}` | {of} | {} |", label.name(), values.join(" "));
            }
            seen.push(*label);
        }
    }
    page
}

#[test]
fn the_page_of_metrics_is_current() {
    let page = page();
    if env::var_os("MAYFLY_WRITE_DOCS").is_some() {
        fs::write(PAGE, &page).unwrap();
    }
    let there = fs::read_to_string(Path::new(PAGE)).unwrap_or_default();
    assert!(there == page, "docs/metrics.md is not what families.rs declares: MAYFLY_WRITE_DOCS=1 writes it");
}

#[test]
fn names_and_labels_are_as_the_design_wants_them() {
    for family in DECLARED {
        let name = family.name;
        let labels: Vec<_> = family.labels.iter().map(|label| label.name()).collect();
        assert!(
            name.starts_with("mayfly_") && name.bytes().all(|it| it.is_ascii_lowercase() || it == b'_'),
            "{name}"
        );
        assert_eq!(family.kind == Kind::Counter, name.ends_with("_total"), "{name}: a counter is a total");
        let histogram = matches!(family.kind, Kind::Seconds | Kind::LongSeconds);
        assert_eq!(histogram, name.ends_with("_duration_seconds"), "{name}: a histogram is of durations");
        assert!(!(labels.contains(&"tenant") && labels.contains(&"image")), "{name}: tenant beside image");
        if histogram {
            assert!(labels.iter().all(|label| ["tier", "source"].contains(label)), "{name}: {labels:?}");
        }
        assert!(family.help.ends_with('.') && !family.help.contains('|'), "{name}: its help is no sentence");
    }
}
