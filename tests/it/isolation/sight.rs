//! What can be seen from inside: files, mounts, devices, descriptors, processes, networks.

use crate::harness::{Place, Tier, by_libvirt_too, on_every_tier};

on_every_tier! {
    a_job_has_no_capability_no_way_to_new_privileges_and_a_filter
    a_host_file_cannot_be_read_by_any_way_out
    only_stdin_stdout_and_stderr_are_open
    only_the_sandboxs_own_processes_are_seen
    there_is_no_network_but_loopback
    dev_holds_nothing_but_what_every_container_has
    only_the_throw_away_places_can_be_written
    every_writable_mount_is_nosuid_and_nodev
    what_tells_of_the_kernel_is_masked_or_read_only
    no_socket_of_the_host_is_in_the_sandbox
    a_job_sees_its_own_clock_and_name
}

by_libvirt_too! {
    a_job_has_no_capability_no_way_to_new_privileges_and_a_filter
    there_is_no_network_but_loopback
}

fn a_job_has_no_capability_no_way_to_new_privileges_and_a_filter(place: &Place) {
    let finished = place.run(["cat", "/proc/self/status"]).finish().code(0);
    let value = |name: &str| {
        let line = finished.text().lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("no {name}")).trim().to_owned()
    };
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(value(set), "0000000000000000", "{set}");
    }
    assert_eq!((value("NoNewPrivs:").as_str(), value("Seccomp:").as_str()), ("1", "2"));
    match place.tier {
        Tier::Chroot | Tier::Nspawn | Tier::Vm => {
            assert_eq!(value("Groups:"), "", "no group of the host's root");
        }
        // Docker lists the own group among the others, and taking it off needs a capability.
        Tier::Docker => assert_eq!(value("Groups:"), value("Gid:").split('\t').next().unwrap()),
    }
}

fn a_host_file_cannot_be_read_by_any_way_out(place: &Place) {
    let secret = "a secret of the host";
    let canary = place.node.write("canary", secret);
    let script = format!(
        "up=; for i in 1 2 3 4 5 6 7 8 9; do up=$up../; done; \
         for root in '' /$up /proc/1/root /proc/self/root /proc/1/cwd/$up /proc/self/cwd/$up /proc/*/root /proc/*/fd/*; do \
           cat \"$root{canary}\" \"$root/{canary}\"; done; cd /tmp; cat $up{canary}; \
         mkdir deeper; chroot deeper /bin/sh -c 'cat {canary}'; cat /proc/*/environ /proc/1/maps; true"
    );
    let finished = place.shell(&script).finish().code(0);
    assert!(!finished.text().contains(secret), "{}", finished.text());
    // The same way leads there from outside.
    assert_eq!(std::fs::read_to_string(format!("/proc/self/root{canary}")).unwrap(), secret);
}

fn only_stdin_stdout_and_stderr_are_open(place: &Place) {
    let finished =
        place.python("import os; print(sorted(os.listdir('/proc/self/fd'), key=int))").finish().code(0);
    // The fourth is the listing's own.
    assert_eq!(finished.text(), "['0', '1', '2', '3']");
    let links = place.shell("for fd in 0 1 2; do readlink /proc/self/fd/$fd; done").finish().code(0);
    assert!(links.text().lines().all(|link| link.starts_with("pipe:")), "{}", links.text());
}

fn only_the_sandboxs_own_processes_are_seen(place: &Place) {
    let finished = place.shell("cd /proc; echo [0-9]*").finish().code(0);
    let seen: Vec<u32> = finished.text().split(' ').map(|pid| pid.parse().unwrap()).collect();
    // The shell itself; the agent is another user's, and hidden.
    assert_eq!(seen.len(), 1, "{seen:?}");
    let children = place.shell("sleep 100 & cd /proc; echo [0-9]*").finish().code(0);
    assert_eq!(children.text().split(' ').count(), 2);
}

fn there_is_no_network_but_loopback(place: &Place) {
    let finished =
        place.shell("sed -n 's/:.*//p' /proc/net/dev; ip -o link | cut -d' ' -f2; ip route").finish().code(0);
    assert_eq!(finished.text().lines().map(str::trim).collect::<Vec<_>>(), ["lo", "lo:"]);

    // Loopback works, and leads to nobody: metadata services, broadcast, and the host's own listeners are elsewhere.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let program = format!(
        "import socket\nown = socket.create_server(('127.0.0.1', 0))\nsocket.create_connection(own.getsockname())\n\
         for at in ('127.0.0.1', {port}), ('169.254.169.254', 80), ('8.8.8.8', 53), ('255.255.255.255', 1):\n  \
         try: socket.create_connection(at, 5); print('reached', at)\n  except OSError as error: print(error.errno)"
    );
    let finished = place.python(&program).finish().code(0);
    assert_eq!(finished.text().lines().collect::<Vec<_>>(), ["111", "101", "101", "101"]);
    std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
}

fn dev_holds_nothing_but_what_every_container_has(place: &Place) {
    let script = "cd /dev; echo *; find . ! -type d ! -type l | sort | while read -r at; do \
                  echo $at $(stat -c '%F %t:%T %a' $at); done";
    let finished = place.shell(script).finish().code(0);
    let mut lines = finished.text().lines();
    let all = "fd full null ptmx pts random shm stderr stdin stdout tty urandom zero";
    assert_eq!(lines.next().unwrap(), all);
    let nodes: Vec<_> = lines.collect();
    let device = |name: &str, numbers: &str| format!("./{name} character special file {numbers} 666");
    let expected = [
        device("full", "1:7"),
        device("null", "1:3"),
        device("pts/ptmx", "5:2"),
        device("random", "1:8"),
        device("tty", "5:0"),
        device("urandom", "1:9"),
        device("zero", "1:5"),
    ];
    assert_eq!(nodes, expected);
}

fn only_the_throw_away_places_can_be_written(place: &Place) {
    let script = "find / -xdev -type d 2>/dev/null; find /dev /proc/sys /sys -type d 2>/dev/null";
    let script = format!(
        "{{ {script}; echo /tmp; echo /job; echo /dev/shm; }} | sort -u | while read -r at; do \
         (: > $at/x) 2>/dev/null && echo $at; done; true"
    );
    for image in ["minimal", "base"] {
        let finished = place.run_in(image, ["sh", "-c", &script]).finish().code(0);
        assert_eq!(finished.text().lines().collect::<Vec<_>>(), ["/dev/shm", "/job", "/tmp"], "{image}");
    }
    assert_eq!(place.run(["ls", "-A", "/sys"]).finish().code(0).text(), "", "/sys is empty");
}

fn every_writable_mount_is_nosuid_and_nodev(place: &Place) {
    let finished = place.run(["cat", "/proc/self/mountinfo"]).finish().code(0);
    let mut writable = Vec::new();
    for line in finished.text().lines() {
        let fields: Vec<_> = line.split(' ').collect();
        let options: Vec<_> = fields[5].split(',').collect();
        assert!(options.contains(&"nosuid"), "{line}");
        // Devices are what /dev and /dev/pts are for, and what the covers in /proc are taken from.
        let devices = fields[4].starts_with("/dev") && fields[4] != "/dev/shm" || line.contains(" /null ");
        assert!(devices || options.contains(&"nodev"), "{line}");
        if options.contains(&"rw") {
            writable.push(fields[4]);
        }
        assert!(fields[6] == "-", "a mount that is shared with anybody: {line}");
    }
    writable.sort_unstable();
    assert_eq!(writable, ["/dev/pts", "/dev/shm", "/job", "/proc", "/tmp"]);
}

fn what_tells_of_the_kernel_is_masked_or_read_only(place: &Place) {
    let script = "cd /proc; for at in kcore keys timer_list interrupts kallsyms sched_debug latency_stats; do \
                    [ -e $at ] && [ -n \"$(head -c 1 $at 2>/dev/null)\" ] && echo $at can be read; done; \
                  for at in acpi scsi asound; do [ -d $at ] && [ -n \"$(ls -A $at)\" ] && echo $at can be listed; done; \
                  for at in sys/kernel/core_pattern sys/kernel/hostname sys/vm/overcommit_memory sys/fs/file-max \
                    sys/user/max_user_namespaces sys/net/ipv4/ip_forward sysrq-trigger irq/default_smp_affinity; do \
                    (cat $at > /tmp/was; cat /tmp/was > $at) 2>/dev/null && echo $at can be written; done; \
                  (echo b > sysrq-trigger) 2>/dev/null && echo sysrq-trigger takes orders; \
                  unshare -U true 2>/dev/null && echo a user namespace; cat sys/user/max_user_namespaces";
    let finished = place.shell(script).finish().code(0);
    match place.tier {
        Tier::Chroot | Tier::Nspawn | Tier::Vm => assert_eq!(finished.text(), "0"),
        // Without a user namespace of its own the number is the host's: two filters keep a job from making one.
        Tier::Docker => assert!(finished.text().parse::<u64>().is_ok(), "{}", finished.text()),
    }
}

fn no_socket_of_the_host_is_in_the_sandbox(place: &Place) {
    let script = "find / -type s 2>/dev/null; grep -v '^Num' /proc/net/unix; true";
    for image in ["minimal", "base"] {
        assert_eq!(place.run_in(image, ["sh", "-c", script]).finish().code(0).text(), "", "{image}");
    }
}

fn a_job_sees_its_own_clock_and_name(place: &Place) {
    let finished =
        place.shell("cut -d. -f1 /proc/uptime; hostname; cat /proc/sys/kernel/hostname").finish().code(0);
    let lines: Vec<_> = finished.text().lines().collect();
    let uptime: u64 = lines[0].parse().unwrap();
    // Docker makes no time namespace, and one can only be entered by being born in it.
    if place.tier != Tier::Docker {
        assert!(uptime < 60, "the host's uptime can be read off: {uptime} s");
    }
    assert_eq!(lines[1], lines[2]);
    // A machine has a name of its own in each of its lives.
    assert!(lines[1] == "mayfly" || place.tier == Tier::Vm && lines[1].starts_with("mayfly-"), "{lines:?}");
}
