//! All that is known of one job, for its page.

use std::path::Path;

use base64::{Engine, engine::general_purpose::STANDARD};
use egress::Egress;
use pool::{Event, GenerationId, JobRef, Story, story};
use serde::{Deserialize, Serialize};
use worker::{ErrorReport, JobResult, Text};

use super::text;
use crate::{board::RunningJob, key::JobKey, store::JobState};

/// Bytes of each stream of a result that are shown; `mayfly result` has the rest.
const OUTPUT: usize = 64 * 1024;
const ARTIFACTS: usize = 200;
const NOTES: usize = 20;
const CONNECTIONS: usize = 100;
const LINES: usize = 40;
const REASON: usize = 600;
const PATH: usize = 400;

/// One job.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct JobCard {
    /// Which.
    pub job: JobKey,
    /// Where it stands.
    #[serde(flatten)]
    pub state: JobState,
    /// What is known while it runs here.
    pub running: Option<RunningJob>,
    /// Why it waits, if it does.
    pub waiting_for: Option<String>,
    /// How it ended. Its texts are cut and can be shown as they are.
    pub result: Option<Box<JobResult>>,
    /// What this node's ledger says of the sandboxes that it had.
    pub story: Vec<StoryLine>,
    /// Why the ledger could not be asked.
    pub story_trouble: Option<String>,
}

/// A line of the ledger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoryLine {
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// Of which life of which sandbox.
    pub generation: String,
    /// What happened: `clean`, `consumed`, `destroyed`, `reverted`, `quarantined` or `crashed`.
    pub what: String,
    /// What else is worth knowing.
    pub detail: String,
}

/// What the ledger says of a job. Tenants may use the same ids, and hear nothing of one another.
pub(super) fn story_of(data_dir: &Path, job: &JobKey) -> Result<Vec<StoryLine>, String> {
    let all = story(data_dir, &job.id).map_err(|error| text::line(&worker::causes(&error), REASON))?;
    Ok(lines_of(&all, &job.tenant))
}

fn lines_of(story: &Story, tenant: &str) -> Vec<StoryLine> {
    let own: Vec<GenerationId> = story
        .iter()
        .filter_map(|(_, event)| match event {
            Event::Consumed { generation, job } if job.tenant == tenant => Some(*generation),
            _ => None,
        })
        .collect();
    let line = |at: u64, generation: GenerationId, what: &str, detail: String| StoryLine {
        at_ms: at,
        generation: generation.to_string(),
        what: what.to_owned(),
        detail: text::line(&detail, PATH),
    };
    let mut lines: Vec<_> = story
        .iter()
        .flat_map(|(at, event)| match event {
            Event::Clean { generation, tier, image } => {
                vec![line(*at, *generation, "clean", format!("{tier}, {image}"))]
            }
            Event::Consumed { generation, job: JobRef { attempt, .. } } => {
                vec![line(*at, *generation, "consumed", format!("attempt {attempt}"))]
            }
            Event::Ended { generation, how } => vec![line(*at, *generation, how.name(), String::new())],
            Event::Recovered { generations, instance, .. } => {
                let ended = generations.iter().filter(|it| own.contains(it));
                ended.map(|it| line(*at, *it, "crashed", format!("with process {instance}"))).collect()
            }
            Event::Opened { .. } | Event::Closed => Vec::new(),
        })
        .filter(|line| own.iter().any(|it| it.to_string() == line.generation))
        .collect();
    lines.truncate(LINES);
    lines
}

/// A result of which every text is short and can be shown.
pub(super) fn tame(result: JobResult) -> JobResult {
    let line = |text: &String| text::line(text, REASON);
    let path = |text: &String| text::line(text, PATH);
    let JobResult { mut artifacts, mut skipped, mut notes, .. } = result;
    artifacts.truncate(ARTIFACTS);
    skipped.truncate(NOTES);
    notes.truncate(NOTES);
    for it in &mut artifacts {
        it.path = path(&it.path);
    }
    for it in &mut skipped {
        (it.path, it.reason) = (path(&it.path), line(&it.reason));
    }
    let error =
        result.error.as_ref().map(|it| ErrorReport::new(line(&it.what), line(&it.why), line(&it.what_to_do)));
    JobResult {
        egress: result.egress.map(reached),
        id: line(&result.id),
        tenant: line(&result.tenant),
        image: result.image.as_ref().map(path),
        stdout: shown(result.stdout),
        stderr: shown(result.stderr),
        notes: notes.iter().map(line).collect(),
        error,
        artifacts,
        skipped,
        ..result
    }
}

/// Which hosts a job asks for is its own choice of letters.
fn reached(mut egress: Egress) -> Egress {
    egress.connections.truncate(CONNECTIONS);
    for it in &mut egress.connections {
        (it.via, it.to) = (text::line(&it.via, PATH), text::line(&it.to, PATH));
        it.address = it.address.as_ref().map(|address| text::line(address, PATH));
        it.why = it.why.as_ref().map(|why| text::line(why, REASON));
    }
    egress
}

/// What was no UTF-8 is shown all the same.
fn shown(stream: Text) -> Text {
    let bytes = match &stream.base64 {
        Some(text) => STANDARD.decode(text).unwrap_or_default(),
        None => stream.text.into_bytes(),
    };
    let (text, whole) = text::lines(&bytes, OUTPUT);
    Text { text, base64: None, bytes: stream.bytes, truncated: stream.truncated || !whole }
}

#[cfg(test)]
mod tests {
    use egress::Connection;
    use pool::{Ended, Id, Tier};
    use worker::{Artifact, Outcome};

    use super::*;

    fn generation(number: u8) -> GenerationId {
        format!("{number:032x}").parse().unwrap()
    }

    #[test]
    fn a_job_hears_of_its_own_sandboxes_and_not_of_those_of_a_namesake() {
        let consumed = |number, tenant: &str| Event::Consumed {
            generation: generation(number),
            job: JobRef { id: "same".into(), tenant: tenant.into(), attempt: 1 },
        };
        let clean =
            |number| Event::Clean { generation: generation(number), tier: Tier::Vm, image: "base@x".into() };
        let ended = |number| Event::Ended { generation: generation(number), how: Ended::Destroyed };
        let crashed = Event::Recovered {
            instance: Id::random().to_string().parse().unwrap(),
            generations: vec![generation(1), generation(2)],
            length: 1,
            cut: 0,
            hash: String::new(),
        };
        let story: Story = [clean(1), clean(2), consumed(1, "acme"), consumed(2, "other"), ended(2), crashed]
            .into_iter()
            .enumerate()
            .map(|(at, event)| (at as u64, event))
            .collect();
        let told: Vec<_> = lines_of(&story, "acme").into_iter().map(|it| (it.generation, it.what)).collect();
        let own = generation(1).to_string();
        assert_eq!(told, ["clean", "consumed", "crashed"].map(|what| (own.clone(), what.to_owned())));
    }

    #[test]
    fn a_result_is_cut_and_tamed_before_it_is_shown() {
        let mut result =
            JobResult::never_started("a", "b", Outcome::Failed, ErrorReport::new("\u{1b}[2J", "x\ny", ""));
        result.stdout = Text {
            text: String::new(),
            base64: Some(STANDARD.encode(b"\xff\x1b")),
            bytes: 2,
            truncated: false,
        };
        result.stderr = Text { text: "e".repeat(OUTPUT + 1), bytes: OUTPUT as u64 + 1, ..Text::default() };
        let evil = || "\u{1b}<b>\u{202e}".repeat(PATH);
        let connection = Connection {
            via: evil(),
            to: evil(),
            address: Some(evil()),
            sent: 1,
            received: 2,
            open_us: 3,
            ended: egress::Ended::Refused,
            reason: Some(egress::Reason::Name),
            why: Some(evil()),
        };
        let connections = vec![connection; CONNECTIONS * 2];
        result.egress = Some(Egress { refused: 200, connections, ..Egress::default() });
        let artifact = Artifact { path: "/job/\u{202e}x".into(), size: 1, sha256: "0".into() };
        result.artifacts = vec![artifact; ARTIFACTS * 2];
        let tamed = tame(result);
        assert_eq!((tamed.stdout.text.as_str(), tamed.stdout.truncated), ("\\xff^[", false));
        assert_eq!((tamed.stderr.text.len(), tamed.stderr.truncated), (OUTPUT, true));
        assert_eq!((tamed.artifacts.len(), tamed.artifacts[0].path.as_str()), (ARTIFACTS, "/job/\\u{202e}x"));
        assert_eq!(tamed.error.unwrap().why, "x^Jy");
        let egress = tamed.egress.unwrap();
        assert_eq!((egress.refused, egress.connections.len()), (200, CONNECTIONS));
        let Connection { via, to, address, why, .. } = egress.connections[0].clone();
        for text in [via, to, address.unwrap(), why.unwrap()] {
            assert!(text.starts_with("^[<b>\\u{202e}^[<b>") && text.ends_with('…'), "{text}");
        }
    }
}
