//! Dashboards and alerts, asked of a real Prometheus that looks at a host under load.

use std::{
    fmt::Write as _,
    fs,
    io::{Read, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use scheduler::broker::ReplyBy;
use serde_json::{Value, json};
use servers::{Prometheus, Version};
use worker::Outcome;

use super::Shown;
use crate::harness::{Cluster, eventually, script};

/// How much of the past a rate looks at, with one look a second.
const RATE: &str = "10s";
const LOAD: Duration = Duration::from_secs(15);

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("dashboards")
}

fn read(path: &str) -> String {
    fs::read_to_string(folder().join(path)).unwrap()
}

/// The files that Prometheus is given, as they are in the tree but for the places and times of this test.
fn prometheus(port: u16) -> Prometheus {
    let config = read("prometheus/prometheus.yml");
    let ours = config.replace("127.0.0.1:9477", &format!("127.0.0.1:{port}")).replace(": 15s", ": 1s");
    assert_ne!(ours, config);
    Prometheus::start(&ours, &[("alerts.yml", &read("prometheus/alerts.yml"))]).unwrap()
}

/// A question that is not a part of a URL yet.
fn encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        if byte.is_ascii_alphanumeric() {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
        out
    })
}

/// The values that a question is answered with now.
fn ask(prometheus: &Prometheus, query: &str) -> Result<Vec<String>, String> {
    let path = format!("/api/v1/query?query={}", encoded(query));
    let (status, body) = prometheus.get(&path).map_err(|error| error.to_string())?;
    let answer: Value = serde_json::from_str(&body).map_err(|error| format!("{error}: {body}"))?;
    if status != 200 || answer["status"] != "success" {
        return Err(format!("{}", answer["error"]));
    }
    let values = answer["data"]["result"].as_array().unwrap().iter();
    Ok(values.map(|sample| sample["value"][1].as_str().unwrap().to_owned()).collect())
}

/// Every question of every panel, with its variables filled in: (panel, question).
fn panels(tenant: &str) -> Vec<(String, String)> {
    let mut all = Vec::new();
    for file in fs::read_dir(folder().join("grafana")).unwrap().flatten() {
        let path = file.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let dashboard: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let variables: Vec<_> = dashboard["templating"]["list"].as_array().unwrap().iter().collect();
        for panel in dashboard["panels"].as_array().unwrap() {
            let title =
                format!("{}: {}", dashboard["title"].as_str().unwrap(), panel["title"].as_str().unwrap());
            let targets = panel["targets"].as_array().map(Vec::as_slice).unwrap_or_default();
            assert_eq!(targets.is_empty(), panel["type"] == "row", "{title}");
            for target in targets {
                let mut query = target["expr"].as_str().unwrap().to_owned();
                for variable in &variables {
                    let name = variable["name"].as_str().unwrap();
                    let value = match name {
                        "tier" => "chroot",
                        "tenant" => tenant,
                        _ => ".*",
                    };
                    query = query.replace(&format!("${name}"), value);
                }
                query = query.replace("$__rate_interval", RATE).replace("$__range", RATE);
                assert!(!query.contains('$'), "{title} has a variable that nobody sets: {query}");
                all.push((title.clone(), query));
            }
        }
    }
    all
}

/// The variables' own questions: the metric and the label whose values are offered.
fn variables() -> Vec<(String, String)> {
    let dashboards = ["overview", "pool", "tenant"].map(|name| read(&format!("grafana/{name}.json")));
    let parsed = dashboards.iter().map(|text| serde_json::from_str::<Value>(text).unwrap());
    let lists = parsed.flat_map(|dashboard| dashboard["templating"]["list"].as_array().unwrap().clone());
    let queries = lists.filter_map(|variable| Some(variable["definition"].as_str()?.to_owned()));
    queries
        .map(|query| {
            let inside = query.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')')).unwrap();
            let (series, label) = inside.rsplit_once(", ").unwrap();
            (series.replace("$tier", "chroot"), label.to_owned())
        })
        .collect()
}

/// Answers whoever comes, until all is over and one more has come.
fn outside(listener: &TcpListener, over: &AtomicBool) {
    while let Ok((mut stream, _)) = listener.accept() {
        let _ = stream.read(&mut [0; 4096]);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok");
        if over.load(Ordering::SeqCst) {
            return;
        }
    }
}

/// Jobs of all kinds, until it is enough.
fn load(cluster: &Cluster, port: u16, enough: &AtomicBool) {
    let producer = cluster.producer(ReplyBy::Queue);
    let kinds = [
        script("true", &json!({})),
        script("echo x >/job/out", &json!({ "artifacts": ["/job/out"] })),
        script("exit 3", &json!({})),
        script("true", &json!({ "limits": { "memory": "64MiB" } })),
        script(
            &format!("wget -qO- http://good.test:{port}/; wget -qO- http://bad.test/; true"),
            &json!({ "allow": [format!("good.test:{port}")] }),
        ),
    ];
    for round in 0.. {
        if enough.load(Ordering::SeqCst) {
            return;
        }
        let sent: Vec<_> = (0..24)
            .map(|n| cluster.send(&producer, &format!("load-{round}-{n}"), kinds[n % kinds.len()].as_str()))
            .collect();
        for sent in sent {
            let outcome = cluster.answer(sent).outcome;
            assert!(matches!(outcome, Outcome::Succeeded | Outcome::Failed), "{outcome:?}");
        }
    }
}

#[test]
fn every_panel_and_every_alert_is_answered_by_a_real_prometheus_that_looks_at_a_host_under_load() {
    let test = "service::metrics::dashboards::every_panel_and_every_alert_is_answered_by_a_real_prometheus_that_looks_at_a_host_under_load";
    if !Prometheus::is_installed() {
        return servers::tell_skipped(test, "prometheus is not installed");
    }
    let door = "allow = ['good.test:*']\n[network.hosts]\n'good.test' = '127.0.0.1'";
    let Some(cluster) = Cluster::new(test, Version::Debian12, door) else { return };
    let mut shown = Shown::serve(&cluster, Cluster::idle_host(), "");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let prometheus = prometheus(shown.port);
    let (enough, over) = (AtomicBool::new(false), AtomicBool::new(false));
    let began = Instant::now();
    let mut empty = thread::scope(|scope| {
        scope.spawn(|| outside(&listener, &over));
        let load = scope.spawn(|| load(&cluster, port, &enough));
        while began.elapsed() < LOAD {
            thread::sleep(Duration::from_millis(200));
        }
        // While the jobs still come: a rate is of the last seconds.
        let empty = unanswered(&prometheus, &panels(&cluster.tenant));
        enough.store(true, Ordering::SeqCst);
        let loaded = load.join();
        over.store(true, Ordering::SeqCst);
        drop(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap());
        loaded.unwrap();
        empty
    });
    empty.extend(alerts(&prometheus));
    for (series, label) in variables() {
        let values = ask(&prometheus, &format!("count by ({label}) ({series})")).unwrap();
        if values.is_empty() {
            empty.push(format!("the variable over {label} of {series}: no value"));
        }
    }
    assert_eq!(empty, [""; 0]);
    shown.host.stop().code(0);
    shown.host.check();
}

fn unanswered(prometheus: &Prometheus, panels: &[(String, String)]) -> Vec<String> {
    assert!(panels.len() > 65, "{}", panels.len());
    let mut empty = Vec::new();
    for (title, query) in panels {
        match ask(prometheus, query) {
            // One tier is under load: of that, there is a number.
            Ok(values) if values.iter().any(|value| value != "NaN") => {}
            Ok(values) => empty.push(format!("{title}: {query} = {values:?}")),
            Err(error) => empty.push(format!("{title}: {query}: {error}")),
        }
    }
    empty
}

/// An alert that does not fire has an empty answer: so each comparison is made one that answers by 0 or 1.
fn alerts(prometheus: &Prometheus) -> Vec<String> {
    let rules = eventually("all rules were evaluated", || {
        let (_, body) = prometheus.get("/api/v1/rules").ok()?;
        let answer: Value = serde_json::from_str(&body).unwrap();
        let rules = answer["data"]["groups"][0]["rules"].as_array()?.clone();
        rules.iter().all(|rule| rule["health"] != "unknown").then_some(rules)
    });
    assert_eq!(rules.len(), names().len());
    let mut empty = Vec::new();
    for rule in rules {
        let (name, query) = (rule["name"].as_str().unwrap(), rule["query"].as_str().unwrap());
        if rule["health"] != "ok" {
            empty.push(format!("{name}: {}", rule["lastError"]));
        }
        let compared = [" > ", " < ", " >= ", " <= ", " == ", " != "]
            .iter()
            .fold(query.to_owned(), |query, sign| query.replace(sign, &format!("{sign}bool ")));
        assert_ne!(compared, query, "{name} compares nothing");
        match ask(prometheus, &compared) {
            Ok(values) if !values.is_empty() => {}
            answer => empty.push(format!("{name}: {compared}: {answer:?}")),
        }
        // Nothing is wrong with this host.
        if rule["state"] == "firing" && rule["labels"]["severity"] != "info" {
            empty.push(format!("{name} fires on a host that is well"));
        }
    }
    empty
}

/// The alerts' names, in their order.
fn names() -> Vec<String> {
    let alerts = read("prometheus/alerts.yml");
    alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).map(ToOwned::to_owned).collect()
}

/// Families that are in no panel and no alert, with why.
const UNUSED: [(&str, &str); 2] = [
    ("mayfly_pulled_jobs_total", "the sum of mayfly_tenant_pulled_jobs_total, which is shown"),
    ("mayfly_started_jobs_total", "the starts that got a sandbox are mayfly_checkouts_total, which is shown"),
];

#[test]
fn every_family_of_metrics_is_looked_at_by_a_panel_or_an_alert() {
    let alerts = read("prometheus/alerts.yml");
    let rules = alerts.lines().filter_map(|line| line.trim().strip_prefix("expr: ")).map(ToOwned::to_owned);
    let queries: Vec<_> = panels("any").into_iter().map(|(_, query)| query).chain(rules).collect();
    let is_asked = |family: &str| {
        queries.iter().flat_map(|query| query.split(|it: char| !it.is_ascii_alphanumeric() && it != '_')).any(
            |word| {
                let rest = word.strip_prefix(family);
                rest.is_some_and(|rest| ["", "_bucket", "_sum", "_count"].contains(&rest))
            },
        )
    };
    let page = read("../docs/metrics.md");
    let families = page.lines().filter_map(|line| line.strip_prefix("| `mayfly_")?.split_once('`'));
    let families: Vec<_> = families.map(|(name, _)| format!("mayfly_{name}")).collect();
    assert!(families.len() > 60, "{}", families.len());
    for family in &families {
        let unused = UNUSED.iter().any(|(name, _)| name == family);
        assert_ne!(is_asked(family), unused, "{family} is asked for by none, or is listed as if it were");
    }
    for (name, why) in UNUSED {
        assert!(families.iter().any(|family| family == name) && !why.is_empty(), "{name} is no family");
    }
}

#[test]
fn rules_and_configuration_pass_prometheus_own_checks_and_each_alert_fires_when_it_should() {
    let test = "service::metrics::dashboards::rules_and_configuration_pass_prometheus_own_checks_and_each_alert_fires_when_it_should";
    if !Prometheus::is_installed() {
        return servers::tell_skipped(test, "prometheus is not installed");
    }
    let folder = folder().join("prometheus");
    for words in [
        ["check", "rules", "alerts.yml"],
        ["check", "config", "prometheus.yml"],
        ["test", "rules", "alerts.test.yml"],
    ] {
        Prometheus::check(words, &folder).unwrap_or_else(|said| panic!("promtool {words:?}: {said}"));
    }
}

#[test]
fn every_alert_has_its_test_and_its_page_of_the_runbook() {
    let (alerts, tests) = (read("prometheus/alerts.yml"), read("prometheus/alerts.test.yml"));
    let runbook = read("../docs/runbook.md");
    for name in names() {
        // What the operator sets, if he does, and the section: as a whole it can be clicked where alerts are read.
        let section = format!("docs/runbook.md#{}'\n", name.to_lowercase());
        let link = format!(
            "runbook_url: '{{{{ with $externalLabels.runbook_base }}}}{{{{ . }}}}{{{{ end }}}}{section}"
        );
        assert!(alerts.contains(&link), "{name} links elsewhere");
        assert!(
            tests.contains(&format!("runbook_url: 'https://docs.example.org/mayfly/{section}")),
            "{name}'s link is not tested with what it begins with"
        );
        assert!(runbook.contains(&format!("\n## {name}\n")), "docs/runbook.md has no section {name}");
        let cases: Vec<_> = tests.split(&format!("alertname: {name}\n")).skip(1).collect();
        let silent = cases.iter().filter(|case| case.trim_start().starts_with("exp_alerts: []")).count();
        assert!(silent >= 1 && cases.len() > silent, "{name} is not tested silent and firing");
    }
    for section in runbook.lines().filter_map(|line| line.strip_prefix("## ")) {
        assert!(names().iter().any(|name| name == section), "docs/runbook.md: no alert is called {section}");
    }
}
