//! I04: a secret that a job is given as any job is, and all places beside its sandbox where whoever is on the host, or asks its
//! daemons, could read it.

use std::{
    fs, io,
    io::{BufRead, BufReader, Read, Write},
    os::unix::{
        fs::{MetadataExt, PermissionsExt},
        net::UnixStream,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
};

use egress::{Ask, Place, Plan, Rights, SecretRule, Source};
use pool::{Id, Tier};

use super::watch::{FIRST_ID, command_line, field, processes};
use crate::looks::Look;

/// What the rule is called, and the variable of the job that has the value.
const NAME: &str = "SECRET";
/// Where libvirt keeps what its machines are told, and systemd what its units are.
const DAEMONS: [&str; 2] = ["/run/libvirt", "/run/systemd/transient"];
/// What every container of mayfly's has.
const LABEL: &str = "mayfly.generation";
/// How much of a file is searched at once.
const PIECE: usize = 1 << 20;

/// A secret and where it is kept.
pub(super) struct Secret {
    word: String,
    /// The one file that may hold it.
    file: PathBuf,
    /// Where mayfly and what it uses keep files.
    folders: Vec<PathBuf>,
    /// No file that was written before can hold it, in seconds of the host's clock.
    since: i64,
}

impl Secret {
    /// Keeps a new one in a folder that is the selftest's alone.
    pub(super) fn keep(folder: &Path, data_dir: &Path) -> io::Result<Self> {
        let (word, file) = (Id::random().to_string(), folder.join("secret"));
        fs::write(&file, &word)?;
        fs::set_permissions(&file, PermissionsExt::from_mode(0o600))?;
        let own = [folder.parent().unwrap_or(folder), data_dir];
        let folders = own.into_iter().chain(DAEMONS.map(Path::new)).map(Path::to_owned).collect();
        let since = fs::metadata(&file)?.ctime();
        Ok(Self { word, file, folders, since })
    }

    /// What a job has that may hold it.
    pub(super) fn plan(&self) -> Option<Arc<Plan>> {
        let rule = SecretRule {
            name: NAME.to_owned(),
            from: Source::File(self.file.clone()),
            to: Some(Place::Env(NAME.to_owned())),
        };
        let secrets = [(NAME.to_owned(), Arc::new(rule))].into_iter().collect();
        let rights = Rights { secrets, ..Rights::default() };
        let asked = [NAME.to_owned()];
        let ask = Ask { allow: &[], tunnels: &[], secrets: &asked };
        rights.grant("selftest", &ask).ok()?.map(Arc::new)
    }

    /// Where it can be read beside a job, which may be seen from the host.
    pub(super) fn found(&self, tier: Tier, job: Option<u32>) -> Look {
        for pid in processes() {
            if command_line(pid).contains(&self.word) {
                return Look::open(format!("it is in the arguments of process {pid}"));
            }
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            if Some(pid) != job
                && self.is_in(&environment)
                && field(pid, "Uid:").is_some_and(|uid| uid < FIRST_ID)
            {
                return Look::open(format!("it is in the environment of process {pid}"));
            }
        }
        if let Some(file) = self.folders.iter().find_map(|folder| self.file_with(folder)) {
            return Look::open(format!("it is in {}", file.display()));
        }
        // Of other tiers' sandboxes no daemon of this kind knows.
        if tier != Tier::Docker {
            return Look::held("in no argument, no environment and no file of mayfly's");
        }
        let host = std::env::var("DOCKER_HOST").unwrap_or_default();
        self.of_docker(host.strip_prefix("unix://").unwrap_or("/run/docker.sock"))
    }

    fn is_in(&self, bytes: &[u8]) -> bool {
        bytes.windows(self.word.len()).any(|window| window == self.word.as_bytes())
    }

    /// A file below a folder, other than its own, that was written since and holds it.
    fn file_with(&self, folder: &Path) -> Option<PathBuf> {
        let mut folders = vec![folder.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                let (path, Ok(meta)) = (entry.path(), entry.metadata()) else { continue };
                if meta.is_dir() {
                    folders.push(path);
                } else if meta.is_file()
                    && meta.ctime() >= self.since
                    && path != self.file
                    && self.is_in_file(&path).unwrap_or(false)
                {
                    return Some(path);
                }
            }
        }
        None
    }

    fn is_in_file(&self, path: &Path) -> io::Result<bool> {
        let mut file = fs::File::open(path)?;
        let (mut piece, mut kept) = (vec![0; PIECE], 0);
        loop {
            let read = file.read(&mut piece[kept..])?;
            let filled = kept + read;
            if read == 0 || self.is_in(&piece[..filled]) {
                return Ok(read > 0);
            }
            // It may begin at the end of this piece.
            kept = filled.min(self.word.len() - 1);
            piece.copy_within(filled - kept..filled, 0);
        }
    }

    fn of_docker(&self, socket: &str) -> Look {
        match self.inspected(socket) {
            Ok(true) => Look::open("docker tells it of a container"),
            Ok(false) => {
                Look::held("in no argument, no environment, no file of mayfly's and no daemon's record")
            }
            Err(error) => Look::unknown(format!("docker could not be asked for it: {error}")),
        }
    }

    /// Whether the daemon tells it to whoever asks for its containers.
    fn inspected(&self, socket: &str) -> io::Result<bool> {
        let list: Vec<serde_json::Value> = serde_json::from_str(&get(socket, "/containers/json?all=true")?)?;
        let ours = |container: &serde_json::Value| container["Labels"][LABEL].is_string();
        if !list.iter().any(ours) {
            return Err(io::Error::other(
                "it tells of no container of mayfly's, so it may be another daemon",
            ));
        }
        for container in list {
            let id = container["Id"].as_str().unwrap_or_default();
            if get(socket, &format!("/containers/{id}/json"))?.contains(&self.word) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// A program that is handed its secret as an argument.
    pub(super) fn careless(&self, tier: Tier) -> Look {
        let program = self.file.with_file_name("prober");
        let started = || -> io::Result<Child> {
            fs::write(&program, images::PROBER)?;
            fs::set_permissions(&program, PermissionsExt::from_mode(0o755))?;
            let mut command = Command::new(&program);
            command.args(["wait=1", &format!("secret={}", self.word)]);
            let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
            // Its arguments can be read only some time after it was started; when it speaks, they can.
            if let Some(stdout) = child.stdout.as_mut() {
                BufReader::new(stdout).read_line(&mut String::new())?;
            }
            Ok(child)
        };
        let look = match started() {
            Ok(mut child) => {
                let look = self.found(tier, None);
                drop(child.stdin.take());
                let _ = child.wait();
                look
            }
            Err(error) => Look::unknown(format!("nothing could be started with a secret: {error}")),
        };
        let _ = fs::remove_file(&program);
        look
    }
}

fn get(socket: &str, path: &str) -> io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: docker\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    Ok(body.to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;
    use crate::verdict::Seen;

    fn kept() -> (tempfile::TempDir, Secret) {
        let run = tempfile::tempdir().unwrap();
        let folder = run.path().join("selftest");
        fs::create_dir(&folder).unwrap();
        let secret = Secret::keep(&folder, run.path()).unwrap();
        (run, secret)
    }

    #[test]
    fn a_secret_in_an_argument_or_a_file_is_found() {
        let (run, secret) = kept();
        assert_eq!(secret.found(Tier::Chroot, None).seen, Seen::Held);
        assert_eq!(secret.careless(Tier::Chroot).seen, Seen::Open);
        fs::write(run.path().join("note"), &secret.word).unwrap();
        assert_eq!(secret.found(Tier::Chroot, None).seen, Seen::Open);
    }

    #[test]
    fn a_secret_in_a_large_file_is_found_wherever_it_begins() {
        let (run, secret) = kept();
        let deep = run.path().join("a/b/c/d/e/f");
        fs::create_dir_all(&deep).unwrap();
        for before in [5 * PIECE, PIECE - 1, 2 * PIECE - secret.word.len() + 1] {
            let bytes = [&vec![0; before][..], secret.word.as_bytes(), &[0; 9]].concat();
            fs::write(deep.join("memory"), bytes).unwrap();
            assert_eq!(secret.found(Tier::Chroot, None).seen, Seen::Open, "{before}");
        }
        fs::write(deep.join("memory"), vec![0; 6 * PIECE]).unwrap();
        assert_eq!(secret.found(Tier::Chroot, None).seen, Seen::Held);
    }

    /// A daemon that knows one container, with this label and this in its record.
    fn daemon(socket: &Path, label: &str, record: &str) {
        let listener = UnixListener::bind(socket).unwrap();
        let list = format!(r#"[{{"Id":"one","Labels":{{"{label}":"x"}}}}]"#);
        let record = record.to_owned();
        std::thread::spawn(move || {
            for answer in [list, record] {
                let (mut stream, _) = listener.accept().unwrap();
                let mut line = String::new();
                BufReader::new(&stream).read_line(&mut line).unwrap();
                write!(stream, "HTTP/1.0 200 OK\r\n\r\n{answer}").unwrap();
            }
        });
    }

    #[test]
    fn what_a_daemon_could_not_be_asked_for_is_unknown() {
        let (run, secret) = kept();
        let seen = |name: &str, label: &str, record: &str| {
            let socket = run.path().join(name);
            daemon(&socket, label, record);
            secret.of_docker(socket.to_str().unwrap()).seen
        };
        let nobody = run.path().join("nobody");
        assert_eq!(secret.of_docker(nobody.to_str().unwrap()).seen, Seen::Unknown);
        assert_eq!(seen("other", "of-somebody-else", ""), Seen::Unknown);
        assert_eq!(seen("silent", LABEL, "nothing"), Seen::Held);
        assert_eq!(seen("loud", LABEL, &secret.word), Seen::Open);
    }
}
