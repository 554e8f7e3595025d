//! A job from its orders to its exit code.

use agent::message::{Ending, NotStarted, Rlimit, Run, ToAgent};

use crate::host::{Host, STDIN, run, sh};

fn ending_of(run: Run) -> Ending {
    Host::ready().run(run).exit.ending
}

#[test]
fn output_and_exit_code_come_back() {
    let outcome = Host::ready().run(sh("echo out; echo err >&2; exit 3"));
    assert_eq!(outcome.stdout, b"out\n");
    assert_eq!(outcome.stderr, b"err\n");
    assert_eq!(outcome.code(), 3);
}

#[test]
fn the_environment_and_the_directory_are_the_jobs_own() {
    let mut host = Host::ready();
    let env = vec![b"PATH=/usr/bin:/bin".to_vec(), b"ONLY=this".to_vec()];
    let outcome = host.run(Run { env, cwd: b"/usr".to_vec(), ..run(&["env", "sh", "-c", "pwd; env"]) });
    let text = outcome.text();
    assert!(text.starts_with("/usr\n"), "{text}");
    assert!(text.contains("ONLY=this\n"), "{text}");
    assert!(!text.contains("CARGO"), "{text}");
}

#[test]
fn what_cannot_start_says_why() {
    let not_started = |argv: &[&str]| match ending_of(run(argv)) {
        Ending::NotStarted { why, .. } => why,
        other => panic!("{other:?}"),
    };
    let dir = tempfile::tempdir().expect("a directory");
    let script = dir.path().join("no-interpreter");
    std::fs::write(&script, "#!/no/such/interpreter\n").expect("a script");
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&script, executable).expect("executable");
    assert_eq!(not_started(&["no-such-program"]), NotStarted::NotFound);
    assert_eq!(not_started(&["/no/such/program"]), NotStarted::NotFound);
    assert_eq!(not_started(&[]), NotStarted::NotFound);
    assert_eq!(not_started(&[""]), NotStarted::NotFound);
    assert_eq!(not_started(&["/etc/passwd"]), NotStarted::NotExecutable);
    assert_eq!(not_started(&["/etc"]), NotStarted::NotExecutable);
    assert_eq!(not_started(&[script.to_str().expect("a path")]), NotStarted::NotExecutable);
    assert_eq!(not_started(&["true", "with\0nul"]), NotStarted::Other);
    let long = "x".repeat(200_000);
    assert_eq!(not_started(&["true", &long]), NotStarted::TooLong);
}

#[test]
fn a_program_that_may_not_run_does_not_hide_one_that_may() {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("true"), "not executable").expect("a file");
    let path = format!("PATH={}:/usr/bin:/bin", dir.path().display());
    let mut request = run(&["true"]);
    request.env = vec![path.into_bytes()];
    assert_eq!(ending_of(request.clone()), Ending::Code(0));
    request.env = vec![format!("PATH={}", dir.path().display()).into_bytes()];
    let denied = Ending::NotStarted { why: NotStarted::NotExecutable, errno: libc::EACCES };
    assert_eq!(ending_of(request), denied);
}

#[test]
fn a_missing_directory_and_a_refused_limit_are_told_apart() {
    let mut request = run(&["true"]);
    request.cwd = b"/no/such/directory".to_vec();
    assert!(matches!(ending_of(request), Ending::NotStarted { why: NotStarted::Workdir, .. }));
    let mut request = run(&["true"]);
    request.rlimits = vec![(Rlimit::Nofile, u64::MAX)];
    assert!(matches!(ending_of(request), Ending::NotStarted { why: NotStarted::Rlimit, .. }));
}

#[test]
fn limits_hold_in_the_job() {
    let mut request = sh("ulimit -n; ulimit -Hn; ulimit -c");
    request.rlimits = vec![(Rlimit::Nofile, 77), (Rlimit::Core, 0)];
    assert_eq!(Host::ready().run(request).text(), "77\n77\n0\n");
}

#[test]
fn what_the_job_used_is_reported() {
    let outcome = Host::ready().run(sh("i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done"));
    assert_eq!(outcome.code(), 0);
    assert!(outcome.exit.user_us + outcome.exit.system_us > 10_000, "{:?}", outcome.exit);
    assert!(outcome.exit.max_rss_kib > 500, "{:?}", outcome.exit);
}

#[test]
fn a_second_run_is_refused() {
    let mut host = Host::ready();
    assert_eq!(host.run(run(&["true"])).code(), 0);
    host.send(STDIN + 10, ToAgent::Run(run(&["true"])));
    assert_eq!(host.fault(), "a second Run: a sandbox serves one job");
}

#[test]
fn a_long_environment_reaches_the_job_whole() {
    let mut request = sh("env | wc -c");
    for number in 0..60 {
        request.env.push(format!("V{number}={}", "x".repeat(10_000)).into_bytes());
    }
    let text = Host::ready().run(request).text();
    assert!(text.trim().parse::<u32>().expect("a number") > 600_000, "{text}");
}

#[test]
fn a_run_may_follow_the_hello_without_waiting() {
    let mut host = Host::spawn();
    host.send(0, ToAgent::Hello(crate::host::hello()));
    host.send(STDIN, ToAgent::Run(sh("echo early")));
    assert!(matches!(host.receive().message, agent::message::ToHost::Ready(_)));
    assert_eq!(host.finish(&[]).text(), "early\n");
}
