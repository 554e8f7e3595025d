//! Debian packages by mmdebstrap, from wherever the host's apt gets its own: mirrors and proxies are taken over for
//! the build, and nothing of them stays in the image.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use super::{SourceError, program};
use crate::error::At;
use crate::normalise::MTIME;
use crate::rootfs::{Links, Owned, Rootfs};
use crate::{IoError, Progress};

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// dpkg leaves these out, now and in sandboxes with a writable root. Licences stay.
const LEFT_OUT: &[&str] = &[
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/lintian/*",
    "path-exclude=/usr/share/linda/*",
    "path-exclude=/usr/share/bash-completion/*",
    // A sandbox is thrown away: syncing each file of a package guards nothing.
    "force-unsafe-io",
];

/// Records of this build, the host's mirrors, and what the next `apt-get update` writes anew.
const TIDIED: &[&str] = &[
    "etc/apt/apt.conf.d/99mmdebstrap",
    "etc/apt/sources.list",
    "etc/apt/sources.list.d",
    "etc/hostname",
    "etc/resolv.conf",
    "var/cache/apt",
    "var/cache/debconf/config.dat-old",
    "var/cache/debconf/templates.dat-old",
    "var/cache/ldconfig/aux-cache",
    "var/lib/apt/lists",
    "var/lib/dpkg/diversions-old",
    "var/lib/dpkg/status-old",
    "var/log",
];

/// Owned by root: apt would give the `partial` ones to a user of its own, which needs a capability.
const KEPT: &[&str] =
    &["etc/apt/sources.list.d", "var/cache/apt/archives/partial", "var/lib/apt/lists/partial", "var/log/apt"];

const WRITTEN: &[(&str, &str)] = &[
    ("etc/hostname", "sandbox\n"),
    ("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n"),
    ("etc/machine-id", ""),
    ("etc/resolv.conf", ""),
];

/// How much of mmdebstrap's output an error shows.
const TAIL: usize = 20;

/// The name of a release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DebianSuite(String);

/// The name of a package, with `=version` if need be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PackageName(String);

/// What mmdebstrap starts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Variant {
    /// Essential packages and apt.
    #[default]
    Apt,
    /// All required packages and apt.
    Minbase,
}

/// Becomes an argument of a program, so it must not look like an option, a list or a pattern.
fn plain(text: &str, more: &[u8]) -> bool {
    let letter = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    text.bytes().next().is_some_and(letter) && text.bytes().all(|c| letter(c) || more.contains(&c))
}

impl TryFrom<String> for DebianSuite {
    type Error = String;

    fn try_from(suite: String) -> Result<Self, String> {
        if plain(&suite, b"-") { Ok(Self(suite)) } else { Err(format!("`{suite}` is not a Debian release")) }
    }
}

impl From<DebianSuite> for String {
    fn from(suite: DebianSuite) -> Self {
        suite.0
    }
}

impl TryFrom<String> for PackageName {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        let (package, version) = name.split_once('=').unwrap_or((&name, "0"));
        let good = plain(package, b"+-.") && plain(version, b"+-.~:");
        if good { Ok(Self(name)) } else { Err(format!("`{name}` is not a Debian package")) }
    }
}

impl From<PackageName> for String {
    fn from(name: PackageName) -> Self {
        name.0
    }
}

/// What the definition asks for.
pub(super) struct Wanted<'a> {
    pub(super) suite: &'a DebianSuite,
    pub(super) variant: Variant,
    pub(super) packages: &'a [PackageName],
}

pub(super) fn fill(
    root: &Path,
    lock: &File,
    wanted: &Wanted<'_>,
    progress: &mut dyn Progress,
) -> Result<(), SourceError> {
    let mmdebstrap = program("mmdebstrap", "mmdebstrap")?;
    let unshare = program("unshare", "util-linux")?;
    if !Path::new(KEYRING).exists() {
        return Err(SourceError::MissingTool { tool: KEYRING.to_owned(), package: "debian-archive-keyring" });
    }
    let settings = host_settings()?;
    let settings_file = tempfile::NamedTempFile::new().at("make", std::env::temp_dir())?;
    settings_file.as_file().write_all(settings.as_bytes()).at("write", settings_file.path())?;

    progress.step(&format!("installing {} packages of Debian {}", wanted.packages.len(), wanted.suite.0));
    // In namespaces of its own, so that its mounts and daemons end with it, however it ends.
    let mut command = Command::new(unshare);
    command.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--"]).arg(mmdebstrap);
    command.args(["--mode=root", "--format=directory", "--aptopt=Apt::Install-Recommends \"false\""]);
    command.arg(format!("--variant={}", if wanted.variant == Variant::Apt { "apt" } else { "minbase" }));
    command.arg(format!("--aptopt={}", settings_file.path().display()));
    command.args(LEFT_OUT.iter().map(|option| format!("--dpkgopt={option}")));
    let packages: Vec<_> = wanted.packages.iter().map(|package| package.0.as_str()).collect();
    if !packages.is_empty() {
        command.arg(format!("--include={}", packages.join(",")));
    }
    command.arg(&wanted.suite.0).arg(root).args(mirrors(&wanted.suite.0)?);
    command.env("SOURCE_DATE_EPOCH", MTIME.to_string());
    // The empty lock file is its stdin: as long as anything of it lives, nobody takes the directory for abandoned.
    command.stdin(lock.try_clone().at("duplicate", "the lock")?);
    run(command, progress)?;

    progress.step("removing caches and records of the build");
    Ok(tidy(root)?)
}

fn run(mut command: Command, progress: &mut dyn Progress) -> Result<(), SourceError> {
    let mut child =
        command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().at("run", command.get_program())?;
    let mut tail = VecDeque::new();
    for line in BufReader::new(child.stderr.take().expect("it was piped")).split(b'\n') {
        let line =
            String::from_utf8_lossy(&line.at("read the output of", "mmdebstrap")?).trim_end().to_owned();
        progress.detail(&line);
        tail.push_back(line);
        if tail.len() > TAIL {
            tail.pop_front();
        }
    }
    let status = child.wait().at("wait for", "mmdebstrap")?;
    if status.success() {
        return Ok(());
    }
    let tail = tail.make_contiguous().join("\n");
    Err(SourceError::Tool { tool: "mmdebstrap", status: status.to_string(), tail })
}

/// How the host's apt reaches its mirrors: proxies, certificates, checks, and who it logs in as. mmdebstrap reads
/// none of it by itself.
fn host_settings() -> Result<String, SourceError> {
    let dump = output("apt-config", &["dump", "--no-empty", "--format", "%F \"%v\";%n"])?;
    let other = ["Acquire::IndexTargets", "Acquire::Languages", "Acquire::Changelogs", "Acquire::cdrom"];
    let wanted =
        |line: &&str| line.starts_with("Acquire::") && !other.iter().any(|name| line.starts_with(name));
    let mut settings: String = dump.split_inclusive('\n').filter(wanted).collect();
    settings.push_str("Dir::Etc::netrc \"/etc/apt/auth.conf\";\n");
    settings.push_str("Dir::Etc::netrcparts \"/etc/apt/auth.conf.d\";\n");
    Ok(settings)
}

/// The host's own sources for this release, as one-line entries. None: mmdebstrap takes Debian's.
fn mirrors(suite: &str) -> Result<Vec<String>, SourceError> {
    let format = "$(SITE)\t$(RELEASE)\t$(COMPONENT)\t$(ORIGIN)";
    let targets = output("apt-get", &["indextargets", "--format", format, "Created-By: Packages"])?;
    let releases = [suite.to_owned(), format!("{suite}-updates"), format!("{suite}-security")];
    let mut mirrors: Vec<_> = targets
        .lines()
        .filter_map(|line| {
            let [uri, release, "main", origin] = line.split('\t').collect::<Vec<_>>()[..] else {
                return None;
            };
            // Before the first update apt knows no origin, and leaves the field's name.
            let debians = ["Debian", "", "$(ORIGIN)"].contains(&origin);
            (debians && releases.iter().any(|r| r == release)).then(|| format!("deb {uri} {release} main"))
        })
        .collect();
    mirrors.sort();
    mirrors.dedup();
    Ok(mirrors)
}

fn output(tool: &'static str, args: &[&str]) -> Result<String, SourceError> {
    let output =
        Command::new(program(tool, "apt")?).args(args).stdin(Stdio::null()).output().at("run", tool)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let tail = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(SourceError::Tool { tool, status: output.status.to_string(), tail })
}

fn tidy(root: &Path) -> Result<(), IoError> {
    let rootfs = Rootfs::open(root, Links::Inside).at("open", root)?;
    for path in TIDIED {
        rootfs.remove(Path::new(path)).at("remove", root.join(path))?;
    }
    for path in KEPT {
        let path = Path::new(path);
        rootfs.parents(path).at("make the parents of", root.join(path))?;
        rootfs.directory(path, Owned::root(0o755)).at("make", root.join(path))?;
    }
    for (path, text) in WRITTEN {
        rootfs.replace(Path::new(path), text.as_bytes(), Owned::root(0o644)).at("write", root.join(path))?;
    }
    Ok(())
}
