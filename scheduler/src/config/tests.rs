use std::io::Write;

use egress::{Share, TenantLimits};

use super::*;

const EXAMPLE: &str = include_str!("../../../deploy/mayfly.toml");

fn load(text: &str) -> Result<Config, ConfigError> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    Config::load(file.path())
}

#[test]
fn the_annotated_example_is_read() {
    let config = load(EXAMPLE).unwrap();
    assert_eq!(config.tenants["acme"].weight, Some(2));
    assert_eq!(config.floor("acme"), Tier::Docker);
    assert_eq!(config.floor("in-house"), Tier::Chroot);
    assert_eq!(config.shapes().len(), 2);
    assert_eq!(config.pool.keep[0].want(&config.classes).unwrap().limits, config.classes["small"].limits());
}

#[test]
fn every_default_that_the_example_shows_is_the_default() {
    let shown: String = EXAMPLE
        .lines()
        .map(|line| match line.strip_prefix('#') {
            // A setting that is commented out has no space behind its mark; a remark has.
            Some(setting) if !setting.starts_with(' ') && setting.contains('=') => format!("{setting}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    let (mut shown, mut plain) = (load(&shown).unwrap(), load(EXAMPLE).unwrap());
    let acme = shown.tenants.remove("acme").unwrap();
    assert_eq!(acme.floor, Some(plain.defaults.floor));
    assert_eq!(acme.longest_timeout, Some(plain.defaults.longest_timeout));
    plain.tenants.remove("acme");
    assert_eq!(shown.pool.keep[0].tenant.take().as_deref(), Some("acme"));
    let small = shown.classes.remove("small").unwrap();
    assert_eq!(small.limits(), plain.classes.remove("small").unwrap().limits());
    for part in [&mut shown.broker.as_mut().unwrap().ca_file, &mut shown.store.as_mut().unwrap().ca_file] {
        assert_eq!(part.take(), Some(PathBuf::from("/etc/mayfly/ca.pem")));
    }
    assert_eq!(
        shown.docker.socket.take().map(|it| format!("unix://{it}")),
        Some(::pool::DockerSettings::default().host)
    );
    assert_eq!(shown.metrics.token_file.take(), Some(PathBuf::from("/etc/mayfly/metrics.token")));
    assert_eq!(shown.docker.runtime.take().as_deref(), Some("runc"));
    assert_eq!(shown.traces.endpoint.take().as_deref(), Some("http://127.0.0.1:4318/v1/traces"));
    assert_eq!(shown.traces.headers_file.take(), Some(PathBuf::from("/etc/mayfly/traces.headers")));
    let network = &mut shown.network;
    assert!(network.rate.take().is_some() && network.tenant_rate.take().is_some());
    assert!(network.tenant_bytes.take().is_some());
    assert_eq!(std::mem::take(&mut network.hosts).len(), 1);
    let model = shown.tunnels.get_mut("model").unwrap();
    assert_eq!(model.tls.take(), Some(true));
    assert!(model.ca_file.take().is_some() && std::mem::take(&mut model.addresses).len() == 1);
    // Shown as examples: their defaults are found and not written.
    assert!(
        shown.vm.kernel.take().is_some()
            && shown.vm.modules.take().is_some()
            && shown.vm.qemu.take().is_some()
            && shown.vm.libvirt_uri.take().is_some()
            && shown.vm.libvirt_program.take().is_some()
    );
    assert_eq!(shown, plain);
}

#[test]
fn an_empty_file_is_all_defaults() {
    assert_eq!(load("").unwrap(), Config::default());
}

#[test]
fn a_tenant_has_the_defaults_where_it_does_not_say_otherwise() {
    let config = load(
        "[defaults]\nfloor = 'vm'\nlongest_timeout = '5m'\n[tenants.a]\n[tenants.b]\nfloor = 'chroot'\nlongest_timeout = '1h'",
    );
    let policies = config.unwrap().policies().unwrap();
    let minutes = |tenant| policies.of(tenant).longest_timeout.as_secs() / 60;
    assert_eq!((policies.of("a").floor, minutes("a")), (Tier::Vm, 5));
    assert_eq!((policies.of("b").floor, minutes("b")), (Tier::Chroot, 60));
    assert_eq!(policies.of("nobody").floor, Tier::Vm);
    assert_eq!(policies.of("a").timeout.as_secs(), 300, "no default above the longest");
}

#[test]
fn a_tenant_has_the_networks_limits_where_it_does_not_say_otherwise() {
    let config = load(
        "[network]\nconnections = 5\nrate = '1MiB'\ntenant_connections = 7\n[tenants.a]\n\
         [tenants.b.network]\nconnections = 6\nbytes = '2MiB'\ntenant_connections = 8\ntenant_bytes = '1GiB'\nattempts = 9",
    );
    let policies = config.unwrap().policies().unwrap();
    let limits = |tenant| policies.of(tenant).egress.limits;
    let (a, b) = (limits("a"), limits("b"));
    assert_eq!((a.connections, a.rate), (5, Some(1 << 20)));
    assert_eq!((b.connections, b.bytes, b.rate, b.attempts), (6, 2 << 20, Some(1 << 20), 9));
    let share = |tenant| policies.of(tenant).egress.share.clone();
    let tenant = TenantLimits { connections: 7, ..TenantLimits::default() };
    assert_eq!(*share("a"), Share::new(tenant));
    assert_eq!(*share("b"), Share::new(TenantLimits { connections: 8, bytes: Some(1 << 30), ..tenant }));
    assert!(Arc::ptr_eq(&policies.of("a").egress.resolver, &policies.of("b").egress.resolver));
}

#[test]
fn what_cannot_be_is_refused_with_the_place_and_the_reason() {
    let table = [
        ("[serve]\nslotz = 3", &["line 2", "unknown field `slotz`"][..]),
        ("[serve]\nslots = 0", &["serve.slots", "from 1 to 1024"]),
        ("[serve]\ntiers = []", &["serve.tiers", "no job can run"]),
        ("[serve]\ntiers = ['jail']", &["line 2", "jail"]),
        ("[traces]\nendpoint = 'localhost:4318'", &["traces.endpoint", "no address of a collector"]),
        ("[traces]\nendpoint = 'http://me:secret@host/'", &["traces.endpoint", "headers_file"]),
        ("[traces]\nshare = 1.5", &["traces.share", "from 0 to 1"]),
        ("[pool]\nmax_instances = 0", &["pool.max_instances", "no job can run"]),
        ("[pool]\nready_ttl = '0s'", &["pool.ready_ttl", "no time at all"]),
        ("[pool]\nready_ttl = 'soon'", &["line 2", "ready_ttl"]),
        (
            "[[pool.keep]]\ntier = 'chroot'\nimage = 'base'\nclass = 'huge'\nidle_count = 1",
            &["pool.keep[0]", "[classes.huge]"],
        ),
        ("[classes.tiny]\ncpus = 1\nmemory = '1kB'", &["classes.tiny", "memory of 1000 bytes"]),
        ("[classes.odd]\ncpus = nan\nmemory = '1GiB'", &["classes.odd", "cpus"]),
        ("[tenants.'a b']", &["tenants.a b", "letters, digits"]),
        ("[tenants.a]\nweight = 0", &["tenants.a.weight", "from 1 to 1000"]),
        ("[tenants.a]\nmax_running = 0", &["tenants.a.max_running", "wait for ever"]),
        ("[broker]\nport = 1", &["unknown field `port`"]),
        ("[artifacts]\nretention = '1h'", &["artifacts", "either folder or"]),
        ("[artifacts]\nfolder = '/a'\nretention = '0s'", &["artifacts.retention", "no time at all"]),
        ("[metrics]\nlisten = '9477'", &["line 2", "127.0.0.1:9477"]),
        ("[metrics]\nlisten = '0.0.0.0:9477'", &["metrics.listen", "metrics.token_file"]),
        ("[metrics]\nacceptable_wait = '0s'", &["metrics.acceptable_wait", "no time at all"]),
        ("= 1", &["line 1"]),
        ("[network]\nconnections = 0", &["network.connections", "from 1 to 256"]),
        ("[network]\nrate = 0", &["network.rate", "nothing ever arrives"]),
        ("[network]\ntenant_connections = 0", &["network.tenant_connections", "nothing is reached"]),
        ("[network]\ntenant_bytes = 0", &["network.tenant_bytes", "nothing ever arrives"]),
        ("[network]\nattempts = 0", &["network.attempts", "ever reached"]),
        ("[tenants.a.network]\nconnections = 257", &["tenants.a.network.connections", "from 1 to 256"]),
        ("[tenants.a.network]\ntenant_attempts = 0", &["tenants.a.network.tenant_attempts", "ever reached"]),
        ("[tenants.a.network]\nhosts = {}", &["line 2", "unknown field `hosts`"]),
        (
            "[tunnels.a-b]\nto = 'a:1'\nport = 8080\n[tunnels.'a.b']\nto = 'a:1'\nport = 8081",
            &["tunnels.a.b", "and a-b in MAYFLY_TUNNEL_A_B"],
        ),
        (
            "[tunnels.m]\nto = 'a:1'\nport = 8080\nkind = 'http'\ninject = [{ header = 'Host', secret = 'z' }]",
            &["tunnels.m.inject", "\"Host\" is a header that mayfly writes itself"],
        ),
        (
            "[tunnels.m]\nto = 'a:1'\nport = 8080\nkind = 'http'\ninject = [{ header = 'a b', secret = 'z' }]",
            &["tunnels.m.inject", "no name of a header"],
        ),
        ("[network.hosts]\n'a b' = '10.0.0.1'", &["network.hosts.a b", "no name"]),
        ("[network.hosts]\na = 'b'", &["line 2"]),
        ("[tenants.a]\nallow = ['http://x']", &["tenants.a.allow[0]", "has a port that is none"]),
        ("[tenants.a]\nallow = [{ host = 'x', adresses = [] }]", &["line 2", "write \"HOST\""]),
        ("[tenants.a]\ntunnels = ['m']", &["tenants.a.tunnels", "no [tunnels.m]"]),
        ("[tunnels.m]\nto = 'a:1'\nport = 80", &["tunnels.m.port", "below 1024"]),
        ("[tunnels.m]\nto = 'a:1'\nport = 3128", &["tunnels.m.port", "forward proxy"]),
        ("[tunnels.m]\nto = 'a'\nport = 8080", &["tunnels.m.to", "has no port"]),
        ("[tunnels.m]\nto = 'a:1'\nport = 8080\ntls = true", &["tunnels.m.kind", "kind = \"http\""]),
        (
            "[tunnels.m]\nto = 'a:1'\nport = 8080\nkind = 'http'\ninject = [{ header = 'x', value = 'y', secret = 'z' }]",
            &["tunnels.m.inject", "{secret}"],
        ),
        (
            "[tunnels.m]\nto = 'a:1'\nport = 8080\nkind = 'http'\ninject = [{ header = 'x', secret = 'z' }]\n\
             [[secret]]\nname = 'z'\ntenant = 'b'\nfrom = { env = 'Z' }\n[tenants.a]\ntunnels = ['m']",
            &["tunnels.m.inject", "no [[secret]] z of tenant a"],
        ),
        (
            "[[secret]]\nname = 'z'\nfrom = { env = 'Z' }\nto = { env = 'Z' }",
            &["secret.z.tenant", "whose jobs"],
        ),
        (
            "[[secret]]\nname = 'z'\ntenant = 'a'\nfrom = { env = 'Z' }\nto = { env = 'MAYFLY_Z' }",
            &["secret.z.to", "reserved"],
        ),
        (
            "[[secret]]\nname = 'z'\ntenant = 'a'\nfrom = { env = 'Z' }\nto = { file = '/proc/z' }",
            &["secret.z.to", "/proc"],
        ),
        (
            "[[secret]]\nname = 'z'\ntenant = 'a'\nfrom = { env = 'Z' }\nto = { file = '/etc/z' }",
            &["secret.z.to", "/etc/z may be on a disk", "/job/, /tmp/, /dev/shm/"],
        ),
        (
            "[[secret]]\nname = 'z'\ntenant = 'a'\nfrom = { env = 'Z' }\nto = { file = '/tmpfile' }",
            &["secret.z.to", "may be on a disk"],
        ),
    ];
    for (text, expected) in table {
        let said = load(text).expect_err(text).to_string();
        for word in expected {
            assert!(said.contains(word), "{text:?} is refused without {word:?}: {said}");
        }
    }
}

#[test]
fn the_docker_socket_is_the_files_then_dockers_own_setting_then_the_usual_one() {
    let host =
        |text: &str, env: Option<&str>| load(text).unwrap().docker.settings(env.map(ToOwned::to_owned)).host;
    let named = "[docker]\nsocket = '/run/other.sock'";
    assert_eq!(host(named, Some("unix:///run/env.sock")), "unix:///run/other.sock");
    assert_eq!(host("", Some("unix:///run/env.sock")), "unix:///run/env.sock");
    assert_eq!(host("", Some("")), "unix:///var/run/docker.sock");
    assert_eq!(host("", None), "unix:///var/run/docker.sock");
    let relative = load("[docker]\nsocket = 'docker.sock'").unwrap_err().to_string();
    assert!(relative.contains("docker.socket") && relative.contains("absolute"), "{relative}");
}

#[test]
fn emulation_must_be_allowed_in_so_many_words_and_a_kernel_comes_with_its_modules() {
    for (text, setting, says) in [
        ("[vm]\naccel = 'tcg'", "vm.accel", "allow_emulation = true"),
        ("[vm]\nkernel = '/boot/vmlinuz'", "vm.kernel", "modules"),
        ("[vm]\nqemu = 'qemu'", "vm.qemu", "absolute"),
        ("[vm]\nlibvirt_program = 'mayfly-libvirt'", "vm.libvirt_program", "absolute"),
        ("[vm]\nlibvirt_uri = 'qemu+ssh://192.0.2.1/system'", "vm.libvirt_uri", "this host's libvirt"),
        ("[vm]\nengine = 'libvirt'\nsharing = 'tenant'", "vm.sharing", "share no memory"),
        (
            "[vm]\nsharing = 'tenant'\n[[pool.keep]]\ntier = 'vm'\nimage = 'base'\nidle_count = 1",
            "pool.keep[0]",
            "name it (tenant)",
        ),
        ("[vm]\nengine = 'xen'", "engine", "fork"),
    ] {
        let error = load(text).unwrap_err().to_string();
        assert!(error.contains(setting) && error.contains(says), "{error}");
    }
    let settings = load("[vm]\naccel = 'tcg'\nallow_emulation = true").unwrap().vm.settings();
    assert_eq!(settings.accel, ::pool::Accel::Tcg);
    assert!(!load("").unwrap().vm.settings().allow_emulation);
}

#[test]
fn metrics_are_shown_to_this_host_unless_somebody_says_otherwise() {
    let part = |text: &str| load(text).unwrap().metrics;
    assert_eq!(part("").listen.unwrap().to_string(), "127.0.0.1:9477");
    assert_eq!(part("[metrics]\nlisten = 'off'").listen, None);
    let file = |text: &str| {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        let part =
            part(&format!("[metrics]\nlisten = '0.0.0.0:1'\ntoken_file = '{}'", file.path().display()));
        part.token().map(|token| token.is_some()).map_err(|error| error.to_string())
    };
    assert_eq!(file("0123456789abcdef\n"), Ok(true));
    assert!(file("short").unwrap_err().contains("metrics.token_file"));
    assert!(file("with a space in between").is_err());
    assert!(
        part("[metrics]\ntoken_file = '/nowhere/token'")
            .token()
            .unwrap_err()
            .to_string()
            .contains("/nowhere")
    );
}
