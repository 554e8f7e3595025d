//! The live page, in a real browser: what it shows of work, and that nothing which a job or a tenant wrote is ever more
//! than text in it.

use std::{
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener},
    path::Path,
    thread,
};

use scheduler::broker::ReplyBy;
use serde_json::json;
use servers::{Chromium, Version, free_port, skipped};

use crate::{
    harness::{Cluster, Host, eventually, script},
    service::send_many,
};

/// A host with a page, and a browser to look at it.
struct Seen {
    host: Host,
    browser: Chromium,
    base: String,
}

impl Seen {
    fn new(cluster: &Cluster, more: &str) -> Self {
        let (mut host, port) = (Cluster::idle_host(), free_port().unwrap());
        let here = format!("listen = '127.0.0.1:{port}'\n{more}");
        let change = |config: &str| {
            // It is looked ten times in that time for jobs that no host can run.
            let config = config.replace("[serve]", "[serve]\ntier_wait = '60s'");
            config.replace("listen = '127.0.0.1:0'", &here)
        };
        cluster.serve_changed(&mut host, change, |it| it);
        eventually("it is ready", || {
            servers::get(port, "/readyz", "").is_ok_and(|(status, _)| status == 200).then_some(())
        });
        let mut browser = Chromium::start().unwrap();
        browser.look((1280, 900), false).unwrap();
        Self { host, browser, base: format!("http://127.0.0.1:{port}") }
    }

    fn open(&mut self, path: &str) {
        self.browser.open(&format!("{}{path}", self.base)).unwrap();
    }

    fn wait(&mut self, condition: &str) {
        self.browser.wait(condition).unwrap();
    }

    fn waits_for_text(&mut self, text: &str) {
        // Not as it is laid out: of a long output, that takes long.
        self.wait(&format!("document.querySelector('main').textContent.includes({})", json!(text)));
    }

    /// The text of the card with this title.
    fn card(&mut self, title: &str) -> String {
        let card = format!(
            "[...document.querySelectorAll('.card')].find(it => it.querySelector('h2')?.firstChild.data === {}).textContent",
            json!(title)
        );
        self.browser.evaluate(&card).unwrap().as_str().unwrap().to_owned()
    }

    /// All that a selector finds, as text.
    fn all(&mut self, selector: &str) -> Vec<String> {
        let all = format!("[...document.querySelectorAll({})].map(it => it.textContent)", json!(selector));
        serde_json::from_value(self.browser.evaluate(&all).unwrap()).unwrap()
    }

    /// On a small phone nothing is wider than the screen.
    fn fits_a_phone(&mut self) {
        self.browser.look((360, 740), true).unwrap();
        self.wait("document.querySelector('main .card') !== null");
        let width = self.browser.evaluate("document.documentElement.scrollWidth").unwrap();
        assert!(width.as_u64().unwrap() <= 360, "it is {width} wide: {}", self.text());
        self.browser.look((1280, 900), false).unwrap();
    }

    fn text(&mut self) -> String {
        self.browser.evaluate("document.body.innerText").unwrap().as_str().unwrap().to_owned()
    }

    fn end(mut self) {
        assert_eq!(self.browser.complaints(), [""; 0], "its policy refused nothing, and no script failed");
        drop(self.browser);
        self.host.stop().code(0);
        self.host.check();
    }
}

fn begin(test: &str, tenants: &str) -> Option<Cluster> {
    if !Chromium::is_installed() {
        skipped(test, "chromium is not installed");
        return None;
    }
    Cluster::new(test, Version::Debian12, tenants)
}

#[test]
fn what_runs_and_waits_and_ended_is_seen_as_it_happens() {
    let test = "service::live::page::what_runs_and_waits_and_ended_is_seen_as_it_happens";
    let Some(cluster) = begin(test, "max_running = 2\n") else { return };
    let mut seen = Seen::new(&cluster, "[selftest]\nat_start = true\n");
    seen.open("/");
    seen.wait("document.documentElement.dataset.state === 'live'");
    seen.waits_for_text("nothing runs");
    let producer = cluster.producer(ReplyBy::Nothing);
    drop(cluster.send(
        &producer,
        "breaks",
        script("echo x >/job/out; exit 7", &json!({ "artifacts": ["/job/out"] })),
    ));
    seen.waits_for_text("exit code 7");
    assert_eq!(seen.all(".spark i").len(), 60);
    assert_eq!(seen.all(".spark i.some").len(), 1, "one job has ended in the last minute");
    let ids = send_many(&cluster, 0, 5, "sleep 1000");
    seen.waits_for_text("tenant cap 2/2");
    // A job's own reason is that of its tier, and not what its tenant's other jobs wait for.
    let job = seen.host.node.write("vm.json", script("true", &json!({ "id": "for-vm", "tier": "vm" })));
    cluster.mayfly(&seen.host.node, ["submit", &job, "--tenant", &cluster.tenant]).finish().code(0);
    seen.open(&format!("/job/{}", cluster.key("for-vm")));
    seen.waits_for_text("no host offers tier vm");
    assert!(!seen.text().contains("tenant cap"), "{}", seen.text());
    cluster
        .mayfly(&seen.host.node, ["status", &cluster.key("for-vm")])
        .finish()
        .code(0)
        .prints(&["waits: no host offers tier vm"]);
    seen.open("/");
    seen.waits_for_text("no host offers tier vm");
    seen.waits_for_text("jobs on vm");
    seen.waits_for_text("selftest at ");
    assert!(seen.text().contains("; 0 exposed, 0 void"), "{}", seen.text());
    seen.wait("[...document.querySelectorAll('.figure')].some(it => it.innerText.includes('2 of 4'))");
    assert!(seen.card("Throughput").ends_with(" jobs/s over 10 s"), "{}", seen.card("Throughput"));
    assert_eq!(seen.card("Outcomes"), "Outcomesfailed1");
    let own = seen.all("table tr").into_iter().find(|row| row.starts_with(&cluster.tenant));
    // Running of how many, waiting, ended, failed.
    assert_eq!(own.unwrap(), format!("{}2/2311", cluster.tenant));
    let latency = seen.all(".phase");
    for phase in ["queued", "checkout", "run", "collect"] {
        let row = latency.iter().find_map(|row| row.strip_prefix(phase)).expect(phase);
        let (half, most) = row.split_once(" / ").expect(row);
        let is_time = |text: &str| {
            let (number, unit) = text.split_once(' ').expect(text);
            number.parse::<f64>().is_ok_and(|number| number > 0.0) && ["µs", "ms", "s"].contains(&unit)
        };
        assert!(is_time(half) && is_time(most), "{phase}: {row}");
    }
    seen.fits_a_phone();
    let text = seen.text();
    for word in
        ["chroot", "not offered here", "breaks", "failed", &cluster.tenant, "job-0", "checkout", "READY"]
    {
        assert!(text.to_lowercase().contains(&word.to_lowercase()), "no {word}: {text}");
    }
    let running = seen.browser.evaluate("document.querySelector('tbody a').pathname").unwrap();
    seen.open(running.as_str().unwrap());
    seen.wait("document.documentElement.dataset.state === 'live'");
    seen.fits_a_phone();
    assert_eq!(seen.all(".line .on").len(), 1, "the phase that it is in");
    seen.open("/");
    super::cancel_all(&cluster, &seen.host, &ids);
    // A parked job has its end when its time is over: it is noted, and not waited for.
    cluster.mayfly(&seen.host.node, ["cancel", &cluster.key("for-vm")]).finish().code(0);
    seen.wait("[...document.querySelectorAll('.figure')].some(it => it.innerText.includes('0 of 4'))");
    // From there to a job's page, as a person goes.
    let link = "[...document.links].find(it => it.pathname.endsWith('/breaks'))";
    seen.wait(&format!("{link} !== undefined"));
    let path = seen.browser.evaluate(&format!("{link}.pathname")).unwrap();
    seen.open(path.as_str().unwrap());
    seen.wait("document.documentElement.dataset.state === 'over'");
    seen.waits_for_text("given to this job, and to no other");
    seen.waits_for_text("destroyed");
    let timeline = seen.card("Timeline");
    for phase in ["queued", "checkout", "run", "collect"] {
        assert!(timeline.contains(phase), "no {phase}: {timeline}");
    }
    assert!(seen.all(".line div").len() >= 4);
    let result = seen.card("Result");
    for word in [
        "outcomefailed",
        "ended byexit code 7",
        "attempt1",
        "sandboxchroot, ",
        "imageminimal",
        "stdout0 B",
        "CPU time",
    ] {
        assert!(result.contains(word), "no {word}: {result}");
    }
    let artifacts = seen.card("Artifacts");
    let digest = "73cb3858";
    assert!(artifacts.starts_with(&format!("Artifacts1/job/out2 B{digest}fetch them by ")), "{artifacts}");
    assert!(
        artifacts.ends_with(&format!("mayfly result {} --get DIR", cluster.key("breaks"))),
        "{artifacts}"
    );
    seen.fits_a_phone();
    seen.open("/");
    seen.fits_a_phone();
    seen.end();
}

#[test]
fn what_a_hostile_job_writes_is_text_and_nothing_else() {
    let test = "service::live::page::what_a_hostile_job_writes_is_text_and_nothing_else";
    let Some(cluster) = begin(test, "allow = ['good.test:*']\n") else { return };
    let mut seen = Seen::new(&cluster, "");
    let producer = cluster.producer(ReplyBy::Nothing);
    // Markup, escapes of a terminal, letters that turn others around, a line of a mebibyte, and what is no text at all.
    let evil = "printf '<script>window.owned=1</script><img src=x onerror=owned=1></pre></main>\\n'; \
                printf '\\033]0;owned\\007\\033[2J\\033[31mred\\n'; printf 'data: x\\n\\nevent: end\\ndata: 1\\n\\n'; \
                printf 'a\\342\\200\\256b\\377\\376\\302\\n'; \
                head -c 1048576 /dev/zero | tr '\\0' x; printf '\\n</script>END-OF-IT\\n'; \
                echo '<b>kept</b>' >'/job/<img src=x onerror=owned=1>'; \
                p=${http_proxy#http://}; p=${p%/}; \
                ask() { printf \"$1 HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n\" | timeout 10 nc ${p%:*} ${p#*:} >/dev/null; }; \
                ask 'CONNECT x&lt;b&gt;onerror=owned=1:80'; ask 'GET /\"onerror=\"owned=1'; echo ASKED";
    let more = json!({
        "allow": ["good.test:80"],
        "artifacts": ["/job/**"],
        "meta": { "<script>": "</script><script>owned=1</script>" },
    });
    let job = script(&format!("{evil}; sleep 1000"), &more);
    drop(cluster.send(&producer, "evil", job));
    seen.open(&format!("/job/{}", cluster.key("evil")));
    // While it runs.
    seen.waits_for_text("</script>END-OF-IT");
    seen.waits_for_text("ASKED");
    let of_page = |seen: &mut Seen| {
        let held = seen.browser.evaluate(
            "({ owned: window.owned === undefined, scripts: document.scripts.length, images: document.images.length, \
               bold: document.querySelectorAll('pre b, pre script').length, \
               letters: document.querySelector('pre').textContent.length, title: document.title })",
        );
        held.unwrap()
    };
    let held = of_page(&mut seen);
    assert_eq!(
        (&held["owned"], &held["scripts"], &held["images"]),
        (&json!(true), &json!(1), &json!(0)),
        "{held}"
    );
    assert_eq!((&held["bold"], &held["title"]), (&json!(0), &json!("evil · mayfly")), "{held}");
    assert!(held["letters"].as_u64().unwrap() < 300_000, "what is kept is bounded: {held}");
    let controls = "[...document.body.innerText].filter(c => /[\\0-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u202a-\\u202e]/.test(c)).length";
    assert_eq!(seen.browser.evaluate(controls).unwrap(), 0);
    seen.fits_a_phone();
    cluster.mayfly(&seen.host.node, ["cancel", &cluster.key("evil")]).finish().code(0);
    // And of its result, with nothing that could be followed.
    seen.wait("document.documentElement.dataset.state === 'over'");
    assert_eq!(cluster.result(&seen.host.node, "evil")["outcome"], "cancelled");
    seen.open(&format!("/job/{}", cluster.key("evil")));
    seen.wait("document.documentElement.dataset.state === 'over'");
    seen.waits_for_text("/job/<img src=x onerror=owned=1>");
    // The hosts that it asked for, which no rule knows and no server could have.
    seen.waits_for_text("0 made, 2 refused");
    seen.waits_for_text("x&lt;b&gt;onerror=owned=1:80");
    seen.waits_for_text(r#"/\"onerror=\"owned=1"#);
    // What no request can hold, and a result that somebody else wrote could.
    let forged = "main.append(reached({ made: 0, refused: 1, reasons: { '<b>name</b>': 1 }, sent: 0, received: 0, connections: \
                  [{ via: '<img src=x onerror=owned=1>', to: '<script>owned=1</script>', address: '<i>', sent: 1, received: 1, \
                     open_us: 1, ended: 'refused', reason: 'name', why: '</div><img src=x onerror=owned=1>' }] })) === undefined";
    assert_eq!(seen.browser.evaluate(forged).unwrap(), true);
    seen.waits_for_text("<script>owned=1</script>");
    seen.waits_for_text("</div><img src=x onerror=owned=1>");
    let held = of_page(&mut seen);
    assert_eq!(
        (&held["owned"], &held["scripts"], &held["images"]),
        (&json!(true), &json!(1), &json!(0)),
        "{held}"
    );
    assert_eq!(seen.browser.evaluate(controls).unwrap(), 0);
    seen.fits_a_phone();

    // What it writes at first is seen as it is: pictures of what a terminal would obey.
    drop(cluster.send(
        &producer,
        "small",
        script("printf '<i>\\033[31m\\302\\233\\377\\n'; sleep 1000", &json!({})),
    ));
    seen.open(&format!("/job/{}", cluster.key("small")));
    seen.waits_for_text("<i>^[[31m\\u{9b}\\xff");
    cluster.mayfly(&seen.host.node, ["cancel", &cluster.key("small")]).finish().code(0);
    // A page that got markup all the same would still not run it.
    let refused = "new Promise(done => { document.addEventListener('securitypolicyviolation', e => done(e.effectiveDirective)); \
                   const it = document.createElement('script'); it.textContent = 'window.owned = 1'; document.body.append(it); })";
    assert_eq!(seen.browser.evaluate(refused).unwrap(), "script-src-elem");
    assert_eq!(seen.browser.evaluate("window.owned === undefined").unwrap(), true);
    let refused = seen.browser.complaints();
    assert!(refused.len() == 1 && refused[0].contains("Content Security Policy"), "{refused:?}");
    seen.end();
}

#[test]
fn a_browser_without_the_token_sees_a_door_and_nothing_behind_it() {
    let test = "service::live::page::a_browser_without_the_token_sees_a_door_and_nothing_behind_it";
    let Some(cluster) = begin(test, "") else { return };
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    fs::write(&token, "a+token/of=24&characters").unwrap();
    let mut seen = Seen::new(&cluster, &format!("token_file = '{}'", token.display()));
    seen.open(&format!("/job/{}", cluster.key("any")));
    assert!(!seen.text().contains(&cluster.tenant));
    let give = |seen: &mut Seen, token: &str| {
        let give = format!("document.forms[0].token.value = {}; document.forms[0].submit()", json!(token));
        seen.browser.evaluate("window.before = true").unwrap();
        seen.browser.evaluate(&give).unwrap();
    };
    give(&mut seen, "a+token/of=24&wrong-ones");
    eventually("the door is there again", || {
        let again = "window.before === undefined && document.readyState === 'complete' && document.forms.length === 1";
        (seen.browser.evaluate(again).ok()? == true).then_some(())
    });
    give(&mut seen, "a+token/of=24&characters");
    eventually("it is let in", || {
        (seen.browser.evaluate("document.documentElement.dataset.state").ok()? == "live").then_some(())
    });
    assert_eq!(seen.browser.evaluate("location.search + location.hash + document.cookie").unwrap(), "");
    let refused = seen.browser.complaints();
    assert!(refused.iter().all(|it| it.contains("401")), "{refused:?}");
    seen.end();
}

/// `scripts/screenshots` makes the pictures of the documentation by it.
#[test]
#[ignore = "it makes pictures: scripts/screenshots"]
fn pictures_of_the_page_under_load() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/images");
    fs::create_dir_all(&folder).unwrap();
    let Some(mut cluster) = begin(
        "service::live::page::pictures_of_the_page_under_load",
        "max_running = 5\nweight = 2\nallow = ['packages.test:*']\n[tenants.in-house]\nmax_running = 2\n\
         [tenants.night-evals]\n[network.hosts]\n'packages.test' = '127.0.0.1'\n",
    ) else {
        return;
    };
    (cluster.slots, cluster.tiers) = (8, "['chroot', 'nspawn']");
    let mut seen = Seen::new(&cluster, "[selftest]\nat_start = true\n");
    let own = cluster.tenant.clone();
    let packages = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = packages.local_addr().unwrap().port();
    let serving = thread::spawn(move || {
        let (mut stream, _) = packages.accept().unwrap();
        let _ = stream.read(&mut [0; 4096]);
        let head = "HTTP/1.1 200 OK\r\nContent-Length: 48231\r\nConnection: close\r\n\r\n";
        let _ = stream.write_all(&[head.as_bytes(), &vec![b'x'; 48231]].concat());
    });
    let fate = "case $(($1 % 23)) in 3) exit 1;; 7) exit 66;; esac; sleep 0.$(($1 % 7 + 2))";
    for (tenant, jobs) in [(own.as_str(), 160), ("in-house", 60), ("night-evals", 90)] {
        let producer = cluster.producer_of(tenant, ReplyBy::Nothing);
        for number in 0..jobs {
            let tier = if number % 3 == 1 { "nspawn" } else { "chroot" };
            let command = ["sh", "-c", fate, "eval", &number.to_string()];
            let job = script("", &json!({ "command": command, "tier": tier, "idempotent": true }));
            let mut sent = crate::harness::submission(&format!("eval-{number:04}"), job);
            sent.key = tier.to_owned();
            drop(cluster.submit(&producer, sent));
        }
    }
    let reaches = format!(
        "wget -qO /dev/null http://packages.test:{port}/cases.tar; for host in 169.254.169.254 telemetry.example; do \
         wget -qO- http://$host/ 2>/dev/null; done; "
    );
    let story = "echo 'collecting 128 cases'; for n in 1 2 3 4 5 6; do echo \"case $n: passed in 0.$n s\"; sleep 0.3; done; \
                 echo 'case 7: expected 12, got 13' >&2; printf '\\033[31mred\\033[0m <b>not markup</b>\\n'; \
                 mkdir -p /job/out; echo '{}' >/job/out/report.json; head -c 20000 /dev/zero >/job/out/trace.bin; exit 1";
    let more = json!({ "artifacts": ["/job/out"], "allow": [format!("packages.test:{port}")] });
    let job = script(&(reaches + story), &more);
    let mut sent = crate::harness::submission("eval-report", job);
    sent.key = "chroot.high".to_owned();
    drop(cluster.submit(&cluster.producer(ReplyBy::Nothing), sent));
    seen.open("/");
    seen.waits_for_text("exit code 66");
    seen.wait("Number([...document.querySelectorAll('.figure')].find(it => it.innerText.startsWith('Ended')).querySelector('b').firstChild.data) > 120");
    let take = |seen: &mut Seen, name: &str, size, dark| {
        seen.browser.look(size, dark).unwrap();
        fs::write(folder.join(name), seen.browser.picture().unwrap()).unwrap();
    };
    take(&mut seen, "live.png", (1280, 800), false);
    take(&mut seen, "live-dark.png", (1280, 800), true);
    take(&mut seen, "live-phone.png", (390, 844), false);
    seen.open(&format!("/job/{}", cluster.key("eval-report")));
    seen.wait("document.documentElement.dataset.state === 'over'");
    take(&mut seen, "job.png", (1280, 800), false);
    take(&mut seen, "job-phone.png", (390, 844), true);
    serving.join().unwrap();
    seen.end();
}
