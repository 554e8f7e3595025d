//! `mayfly image …`: asks the store and shows its answers.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, UNIX_EPOCH};

use bytesize::ByteSize;
use images::{
    Collected, CollectedMachines, Definition, Difference, Digest, Error, Image, ImageName, ImageRef,
    KernelFrom, Listed, Manifest, Progress, Silent, Store,
};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use worker::{ErrorReport, causes};

use crate::node::Places;

/// Build, list and move the images that sandboxes start from.
#[derive(Debug, clap::Args)]
pub(crate) struct ImageArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Build an image. An unchanged definition is not built again.
    Build {
        /// A built-in definition (base, base-writable, minimal) or the path of a TOML file.
        definition: String,
        /// Build it even if the definition is unchanged: packages may be newer today.
        #[arg(long)]
        force: bool,
        /// Make the form that a VM takes, too: kernel, first root file system, disk. Otherwise the first VM makes it.
        ///
        /// With `--force` Debian's kernel is fetched again as well.
        #[arg(long)]
        machine: bool,
        /// Print the image's manifest as JSON.
        #[arg(long)]
        json: bool,
    },
    /// List the images in the store.
    Ls {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Remove images: a name with all its builds, or one earlier build by its digest.
    Rm {
        /// NAME, NAME@sha256:DIGEST or sha256:DIGEST.
        #[arg(required = true)]
        images: Vec<ImageRef>,
    },
    /// Show what the store knows of an image.
    Inspect {
        /// NAME, NAME@sha256:DIGEST or sha256:DIGEST.
        image: ImageRef,
        /// Read every byte again and compare it with what was built.
        #[arg(long)]
        verify: bool,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Write an image to a file, for another host.
    Export {
        /// NAME, NAME@sha256:DIGEST or sha256:DIGEST.
        image: ImageRef,
        /// The file to write, such as base.tar.zst.
        file: PathBuf,
    },
    /// Read an image from a file that `export` wrote.
    Import {
        /// The file to read.
        file: PathBuf,
    },
    /// Remove builds that no name stands for any more, what virtual machines are not made of any more, and what killed builds left.
    Gc {
        /// Keep this many earlier builds of each name.
        #[arg(long, default_value_t = 0)]
        keep: usize,
        /// Only say what would be removed.
        #[arg(long)]
        dry_run: bool,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

/// What `inspect --json` prints.
#[derive(Serialize)]
struct Inspected<'a> {
    rootfs: &'a Path,
    #[serde(flatten)]
    manifest: &'a Manifest,
    #[serde(skip_serializing_if = "Option::is_none")]
    verified: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_difference: Option<&'a Difference>,
}

/// What `build --json` prints.
#[derive(Serialize)]
struct Built<'a> {
    #[serde(flatten)]
    manifest: &'a Manifest,
    #[serde(skip_serializing_if = "Option::is_none")]
    machine: Option<BuiltMachine<'a>>,
}

/// What `gc --json` prints.
#[derive(Serialize)]
struct CollectedAll {
    #[serde(flatten)]
    images: Collected,
    machines: CollectedMachines,
    /// Why machines were not looked at.
    #[serde(rename = "machines_kept", skip_serializing_if = "Option::is_none")]
    kept: Option<String>,
}

#[derive(Serialize)]
struct BuiltMachine<'a> {
    digest: &'a Digest,
    /// The kernel's release.
    kernel: &'a str,
}

/// Runs one verb on the store below the data directory.
pub(crate) fn run(args: ImageArgs, places: &Places) -> Result<ExitCode, ErrorReport> {
    let kernel = match &args.verb {
        Verb::Build { machine: true, .. } | Verb::Gc { .. } => {
            Some(places.config()?.vm.settings().kernel.source())
        }
        _ => None,
    };
    obey(args.verb, kernel.as_ref(), &places.data_dir).map_err(|error| {
        let hint = error.hint().unwrap_or_else(|| "`mayfly doctor` looks at this host".to_owned());
        ErrorReport::new("image", causes(&error), hint)
    })
}

fn obey(verb: Verb, kernel: Option<&KernelFrom>, data: &Path) -> Result<ExitCode, Error> {
    let store = Store::open(&data.join("images"))?;
    let mut out = io::stdout().lock();
    match verb {
        Verb::Build { definition, force, json, machine: _ } => {
            build(&store, &definition, force, kernel, json, &mut out)?;
        }
        Verb::Ls { json } => list(&store.list()?, json, &mut out)?,
        Verb::Rm { images } => {
            for reference in images {
                for removed in store.remove(&reference)? {
                    print(&mut out, &format!("removed {} {}", removed.name, removed.digest))?;
                }
            }
        }
        Verb::Inspect { image, verify, json } => {
            let image = store.resolve(&image)?;
            let difference = if verify { Some(image.verify()?) } else { None };
            inspect(&image, difference.as_ref(), json, &mut out)?;
            if matches!(difference, Some(Some(_))) {
                return Ok(ExitCode::FAILURE);
            }
        }
        Verb::Export { image, file } => {
            let image = store.resolve(&image)?;
            store.export(&image, &file, &mut *progress(false))?;
            print(&mut out, &format!("{} {}", image.name, image.digest))?;
        }
        Verb::Import { file } => {
            let image = store.import(&file, &mut *progress(false))?;
            print(&mut out, &format!("{} {}", image.name, image.digest))?;
        }
        Verb::Gc { keep, dry_run, json } => {
            let images = store.gc(keep, dry_run)?;
            // Without its kernel nobody can say which form is still wanted.
            let machines = store.gc_machines(kernel.unwrap_or(&KernelFrom::Debian), dry_run);
            let (machines, kept) = match machines {
                Ok(machines) => (machines, None),
                Err(error) => (CollectedMachines::default(), Some(causes(&error))),
            };
            collected(&CollectedAll { images, machines, kept }, dry_run, json, &mut out)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn build(
    store: &Store,
    definition: &str,
    force: bool,
    kernel: Option<&KernelFrom>,
    json: bool,
    out: &mut dyn Write,
) -> Result<(), Error> {
    let definition = Definition::find(definition)?;
    let build = if force { images::rebuild } else { images::build };
    let mut progress = progress(json);
    let image = build(store, &definition, &mut *progress)?;
    let form = match kernel {
        Some(kernel) => {
            if force && *kernel == KernelFrom::Debian {
                store.fetch_debian_kernel(&mut *progress)?;
            }
            Some(store.machine_form(&image, kernel, &mut *progress)?)
        }
        None => None,
    };
    drop(progress);
    if json {
        let machine =
            form.as_ref().map(|form| BuiltMachine { digest: &form.digest, kernel: form.release.trim() });
        return print_json(out, &Built { manifest: &image.manifest, machine });
    }
    print(out, &format!("{} {}", image.name, image.digest))?;
    match form {
        Some(form) => print(out, &format!("machine {} with Linux {}", form.digest, form.release.trim())),
        None => Ok(()),
    }
}

fn list(images: &[Listed], json: bool, out: &mut dyn Write) -> Result<(), Error> {
    if json {
        return print_json(out, &images);
    }
    print(out, &format!("{:<20} {:<19} {:>10}  {:<20} USE", "NAME", "DIGEST", "SIZE", "BUILT"))?;
    for Listed { names, in_use, manifest } in images {
        let names: Vec<_> = names.iter().map(ImageName::as_str).collect();
        // An earlier build has no name of its own any more.
        let name = if names.is_empty() { format!("({})", manifest.name) } else { names.join(",") };
        let digest = &manifest.digest.to_string()[..19];
        let (size, built) = (ByteSize(manifest.size).to_string(), built(manifest));
        let usage = if *in_use { "in use" } else { "" };
        print(out, format!("{name:<20} {digest:<19} {size:>10}  {built:<20} {usage}").trim_end())?;
    }
    Ok(())
}

fn inspect(
    image: &Image,
    verified: Option<&Option<Difference>>,
    json: bool,
    out: &mut dyn Write,
) -> Result<(), Error> {
    let manifest = &image.manifest;
    let first_difference = verified.and_then(Option::as_ref);
    if json {
        let (rootfs, verified) = (image.rootfs.as_path(), verified.map(Option::is_none));
        return print_json(out, &Inspected { rootfs, manifest, verified, first_difference });
    }
    let config = &image.config;
    for (field, value) in [
        ("name", image.name.to_string()),
        ("digest", image.digest.to_string()),
        ("description", manifest.description.clone()),
        ("built", built(manifest)),
        ("content", format!("{} in {} entries", ByteSize(manifest.size), manifest.entries)),
        ("agent", manifest.agent.to_string()),
        ("job", format!("user {}, group {}, in {}", config.user, config.group, config.workdir)),
        ("root", config.root.to_string()),
        ("files", image.rootfs.display().to_string()),
    ] {
        print(out, &format!("{field:<12} {value}"))?;
    }
    for (name, value) in &config.env {
        print(out, &format!("{:<12} {name}={value}", "env"))?;
    }
    match (verified, first_difference) {
        (_, Some(difference)) => print(out, &format!("{:<12} NO: {difference}", "as built")),
        (Some(_), None) => print(out, &format!("{:<12} yes, every byte and owner", "as built")),
        (None, None) => Ok(()),
    }
}

fn collected(all: &CollectedAll, dry_run: bool, json: bool, out: &mut dyn Write) -> Result<(), Error> {
    if json {
        return print_json(out, all);
    }
    let CollectedAll { images: collected, machines, kept } = all;
    let removed = if dry_run { "would remove" } else { "removed" };
    for image in &collected.removed {
        print(out, &format!("{removed} {} {}, {}", image.name, image.digest, ByteSize(image.size)))?;
    }
    for image in &collected.in_use {
        print(out, &format!("in use, kept: {} {}", image.name, image.digest))?;
    }
    let bytes = collected.removed.iter().map(|image| image.size).sum();
    let (images, abandoned) = (collected.removed.len(), collected.abandoned);
    collected_machines(machines, removed, out)?;
    if let Some(why) = kept {
        print(out, &format!("machines and kernels are kept: {why}"))?;
    }
    print(out, &format!("{removed} {images} images ({}) and {abandoned} abandoned builds", ByteSize(bytes)))
}

fn collected_machines(machines: &CollectedMachines, removed: &str, out: &mut dyn Write) -> Result<(), Error> {
    for form in &machines.forms {
        print(out, &format!("{removed} machine {} of {}, {}", form.digest, form.image, ByteSize(form.size)))?;
    }
    for kernel in &machines.kernels {
        print(out, &format!("{removed} kernel {}, {}", kernel.release.trim(), ByteSize(kernel.size)))?;
    }
    for image in &machines.in_use {
        print(out, &format!("in use, so its machines and all kernels are kept: {image}"))?;
    }
    Ok(())
}

fn built(manifest: &Manifest) -> String {
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(manifest.created)).to_string()
}

fn print(out: &mut dyn Write, line: &str) -> Result<(), Error> {
    writeln!(out, "{line}").map_err(Error::output)
}

fn print_json(out: &mut dyn Write, value: &impl Serialize) -> Result<(), Error> {
    let text = serde_json::to_string_pretty(value).map_err(io::Error::from).map_err(Error::output)?;
    print(out, &text)
}

/// A spinner for a person, plain lines for a log, nothing beside JSON.
fn progress(json: bool) -> Box<dyn Progress> {
    if json {
        Box::new(Silent)
    } else if io::stderr().is_terminal() {
        Box::new(Spinner::new())
    } else {
        Box::new(Lines)
    }
}

struct Lines;

impl Progress for Lines {
    fn step(&mut self, what: &str) {
        // A reader of the log that has gone away is no reason to stop a build.
        let _ = writeln!(io::stderr(), "{what}");
    }

    fn detail(&mut self, _line: &str) {}
}

struct Spinner {
    bar: ProgressBar,
    step: String,
}

impl Spinner {
    fn new() -> Self {
        let bar = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed:>4} {wide_msg}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(120));
        Self { bar, step: String::new() }
    }
}

impl Progress for Spinner {
    fn step(&mut self, what: &str) {
        what.clone_into(&mut self.step);
        self.bar.set_message(self.step.clone());
    }

    fn detail(&mut self, line: &str) {
        // The lines of a package's scripts are not ours: nothing of them may steer the terminal.
        let line: String = line.chars().filter(|c| !c.is_control()).collect();
        self.bar.set_message(format!("{}: {line}", self.step));
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
