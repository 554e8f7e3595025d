//! A root with the packages of Debian trixie, made once and kept: for servers of which the host has an older version.
//!
//! It is kept in `MAYFLY_SERVERS_DIR`, or else in the target directory. It gets its name when it is whole, so one that
//! was half made is never used.

use std::{
    env,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::Command,
};

const NAME: &str = "rabbitmq-trixie";
/// The last line of defence against a root that lacks what it was made for.
const PROOF: &str = "usr/lib/rabbitmq/bin/rabbitmq-server";

/// Enters a mount namespace of its own, so that nothing stays mounted, and then the root.
const ENTER: &str = r#"
set -eu
root=$1 data=$2; shift 2
mkdir -p "$root$data"
mount --bind "$data" "$root$data"
mount --rbind /dev "$root/dev"
mount -t proc proc "$root/proc"
exec chroot "$root" "$@"
"#;

/// The root, which is made if it is not there.
pub(crate) fn root_with_rabbitmq() -> io::Result<PathBuf> {
    let folder = folder()?;
    fs::create_dir_all(&folder)?;
    let root = folder.join(NAME);
    if root.join(PROOF).exists() {
        return Ok(root);
    }
    // Another test binary may be at it: then it is there when the lock is ours.
    let lock = File::create(folder.join(format!("{NAME}.lock")))?;
    lock.lock()?;
    if !root.join(PROOF).exists() {
        let partial = folder.join(format!("{NAME}.partial"));
        if partial.exists() {
            fs::remove_dir_all(&partial)?;
        }
        make(&partial)?;
        fs::rename(&partial, &root)?;
    }
    Ok(root)
}

/// A program inside the root, which sees `data` at the same path.
pub(crate) fn inside(root: &Path, data: &Path, program: &str) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "bash", "-c", ENTER, "enter"]);
    command.args([root, data]).arg(program);
    command
}

fn folder() -> io::Result<PathBuf> {
    if let Some(folder) = env::var_os("MAYFLY_SERVERS_DIR") {
        return std::path::absolute(folder);
    }
    // target/debug/deps/the-test
    let test = env::current_exe()?;
    let target = test.ancestors().nth(3).unwrap_or(&test);
    Ok(target.join("servers"))
}

fn make(root: &Path) -> io::Result<()> {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "mmdebstrap", "--quiet"]);
    command.args(["--variant=minbase", "--include=rabbitmq-server", "--dpkgopt=force-unsafe-io"]);
    for left_out in ["doc", "man", "info", "locale"] {
        command.arg(format!("--dpkgopt=path-exclude=/usr/share/{left_out}/*"));
    }
    command.arg("--customize-hook=printf '127.0.0.1 localhost\\n' >\"$1/etc/hosts\"");
    let made = command.args(["trixie".as_ref(), root.as_os_str()]).output()?;
    if made.status.success() {
        return Ok(());
    }
    let complaint = String::from_utf8_lossy(&made.stderr);
    Err(io::Error::other(format!("mmdebstrap cannot make a root of trixie: {}", complaint.trim())))
}
