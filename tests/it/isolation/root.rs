//! The root file system: what jobs do to it, and what is left of that.

use std::{fs, os::unix::fs::PermissionsExt, process::Command};

use crate::harness::{Place, Tier, by_libvirt_too, on_every_tier, result_of};

on_every_tier! {
    a_read_only_root_refuses_writes_even_to_its_owner
    the_bytes_and_owners_of_an_image_never_change
    a_writable_root_takes_packages_and_forgets_them
    a_writable_root_is_limited_in_size
    root_inside_a_writable_root_is_nobody_outside
}

by_libvirt_too! {
    root_inside_a_writable_root_is_nobody_outside
}

fn a_read_only_root_refuses_writes_even_to_its_owner(place: &Place) {
    let script = "for act in 'touch /etc/new' 'rm /etc/passwd' 'chmod 777 /etc' 'mkdir /new' 'mv /bin /bin2' \
                  'ln /etc/passwd /tmp/passwd' 'mount -o remount,rw /'; do $act 2>/dev/null && echo $act; done; true";
    assert_eq!(place.shell(script).finish().code(0).text(), "");
}

fn the_bytes_and_owners_of_an_image_never_change(place: &Place) {
    let script = "for at in / /etc /usr /bin /var; do touch $at/x; chown 1000 $at; chmod 777 $at; done 2>/dev/null; \
                  echo x >> /etc/passwd; true";
    for image in ["minimal", "base"] {
        place.run_in(image, ["sh", "-c", script]).finish().code(0);
        let inspected = place.node.mayfly(["image", "inspect", image, "--verify", "--json"]).finish().code(0);
        assert_eq!(inspected.json()["verified"], true);
    }
    let writable = writable(place);
    place
        .run_in(&writable, ["sh", "-c", &format!("{script}; rm -rf /usr/share /var/lib/dpkg")])
        .finish()
        .code(0);
    place.node.mayfly(["image", "inspect", &writable, "--verify"]).finish().code(0);
}

/// An image of `base` with a writable root, built once for all by whoever comes first. Its files are shared.
fn writable(place: &Place) -> String {
    place.node.mayfly(["image", "build", "base-writable"]).finish().code(0);
    "base-writable".to_owned()
}

/// A package that is as small as one can be.
fn package(place: &Place) -> String {
    let tree = place.node.file("package");
    fs::create_dir_all(tree.join("DEBIAN")).unwrap();
    fs::create_dir_all(tree.join("usr/bin")).unwrap();
    fs::write(
        tree.join("DEBIAN/control"),
        "Package: greeter\nVersion: 1\nArchitecture: all\nMaintainer: nobody <nobody@example.org>\nDescription: greets\n",
    )
    .unwrap();
    fs::write(tree.join("DEBIAN/postinst"), "#!/bin/sh\necho configured > /etc/greeter\n").unwrap();
    fs::write(tree.join("usr/bin/greeter"), "#!/bin/sh\necho hello\n").unwrap();
    for program in ["DEBIAN/postinst", "usr/bin/greeter"] {
        fs::set_permissions(tree.join(program), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let package = place.node.file("greeter.deb");
    let built = Command::new("dpkg-deb")
        .args(["--root-owner-group", "--build"])
        .arg(&tree)
        .arg(&package)
        .output()
        .unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    package.to_str().unwrap().to_owned()
}

fn a_writable_root_takes_packages_and_forgets_them(place: &Place) {
    if place.tier == Tier::Docker {
        return a_writable_root_takes_files_and_forgets_them(place);
    }
    let (image, package) = (writable(place), package(place));
    let script = "dpkg -i /job/greeter.deb >/dev/null && greeter && cat /etc/greeter && stat -c %u /usr/bin/greeter && id -u";
    let install = place.run_in(&image, ["sh", "-c", script]);
    let finished = install.args(["--put", &format!("{package}:/job/greeter.deb")]).finish().code(0);
    assert_eq!(finished.text().lines().collect::<Vec<_>>(), ["hello", "configured", "0", "0"]);

    let next =
        place.run_in(&image, ["sh", "-c", "greeter; ls /etc/greeter; dpkg -s greeter"]).finish().code(1);
    assert_eq!(next.text(), "");
}

/// Without a user namespace nobody inside has the number 0, which dpkg asks for: files go where the image's owner may
/// write, which is everywhere, and packages do not.
fn a_writable_root_takes_files_and_forgets_them(place: &Place) {
    let image = writable(place);
    let script = "printf '#!/bin/sh\necho hello\n' > /usr/bin/greeter && chmod 755 /usr/bin/greeter && greeter && \
                  rm /etc/passwd && ! ls /etc/passwd 2>/dev/null && stat -c %u /usr/bin/greeter";
    let finished = place.run_in(&image, ["sh", "-c", script]).finish().code(0);
    let (said, owner) = finished.text().split_once('\n').unwrap();
    assert_eq!((said, place.inside(owner)), ("hello", 0));
    let next = place
        .run_in(&image, ["sh", "-c", "cat /etc/passwd >/dev/null && ! greeter 2>/dev/null && echo gone"]);
    assert_eq!(next.finish().code(0).text(), "gone");
}

fn a_writable_root_is_limited_in_size(place: &Place) {
    let image = writable(place);
    let script =
        "head -c 100000000 /dev/zero > /usr/fill; echo $?; head -c 1000000 /dev/zero > /tmp/fill; echo $?";
    let job = place.run_in(&image, ["sh", "-c", script]).args(["--disk", "16MiB"]);
    let result = result_of(job, 0);
    assert_eq!(result["stdout"]["text"], "1\n1\n", "the root and /tmp share one disk");
    assert!(result["stderr"]["text"].as_str().unwrap().contains("No space left on device"));
    assert_eq!(result["usage"]["oom_kills"], 0);
}

fn root_inside_a_writable_root_is_nobody_outside(place: &Place) {
    let image = writable(place);
    let script = "id -u; grep -E 'CapEff|NoNewPrivs|Seccomp:' /proc/self/status; mknod /dev/mem2 c 1 1 2>/dev/null; \
                  mknod /root/mem c 1 1 2>/dev/null && cat /root/mem >/dev/null 2>&1 && echo read; \
                  kill -9 1 2>/dev/null && echo killed; mount -t tmpfs none /mnt 2>/dev/null && echo mounted; \
                  echo 1 2>/dev/null > /proc/sys/vm/drop_caches && echo dropped; chroot / true 2>/dev/null && echo changed";
    let finished = place.run_in(&image, ["bash", "-c", &format!("{script}; true")]).finish().code(0);
    let lines: Vec<_> = finished.text().lines().collect();
    assert_eq!(place.inside(lines[0]), 0);
    assert_eq!(lines[1..], ["CapEff:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"]);
}
