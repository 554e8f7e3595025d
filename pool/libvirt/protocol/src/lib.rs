//! What mayfly and its libvirt engine say to each other: one JSON document a line, over one stream.
//!
//! The engine greets first. Then every question has one answer, by its number; many may be open at once. It knows neither
//! libvirt nor what a machine is for, so that mayfly can be built where there is no libvirt.

use serde::{Deserialize, Serialize};

/// Changes whenever one side would misunderstand the other's.
pub const VERSION: u32 = 2;

/// The namespace of the element by which a domain says whose it is.
pub const LABEL: &str = "urn:mayfly:sandbox";

/// What stands for that namespace in a domain's description.
pub const PREFIX: &str = "mayfly";

/// The engine's first line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Greeting {
    /// [`VERSION`] as the engine was built with.
    pub protocol: u32,
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// The answer bears it too.
    pub id: u64,
    /// What.
    pub ask: Ask,
}

/// What the engine can do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ask {
    /// Says which libvirt answers.
    Host,
    /// Defines a domain and starts it.
    Boot {
        /// The domain as libvirt describes it.
        xml: String,
    },
    /// Keeps a running domain's memory and disks under a name.
    Keep {
        /// The domain's name.
        domain: String,
        /// The snapshot's.
        snapshot: String,
    },
    /// Has a domain go on from exactly that snapshot, and checks that it runs.
    Revert {
        /// The domain's name.
        domain: String,
        /// The snapshot's.
        snapshot: String,
    },
    /// Has a running domain say whose it is now, until it ends.
    Label {
        /// The domain's name.
        domain: String,
        /// The element that it says so by, in [`LABEL`]'s namespace.
        element: String,
    },
    /// Ends a domain and forgets it and its snapshots. One that is not there is no failure.
    Remove {
        /// Its name.
        domain: String,
    },
    /// The domains that bear an instance's label, whatever they do.
    List {
        /// The instance.
        instance: String,
    },
}

/// One answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// The question's.
    pub id: u64,
    /// What became of it.
    pub answer: Answer,
}

/// What became of a question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// It is done.
    Done,
    /// Versions, such as `9.0.0`.
    Host {
        /// Of libvirt.
        libvirt: String,
        /// Of QEMU.
        qemu: String,
    },
    /// Names of domains.
    Domains(Vec<String>),
    /// It is not done.
    Refused {
        /// At which step.
        step: String,
        /// Libvirt's own words.
        why: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_one_line_whatever_is_in_it() {
        let ask = Ask::Boot { xml: "<domain>\n</domain>\n".to_owned() };
        let line = serde_json::to_string(&Question { id: 7, ask: ask.clone() }).unwrap();
        assert!(!line.contains('\n'), "{line}");
        assert_eq!(serde_json::from_str::<Question>(&line).unwrap(), Question { id: 7, ask });
    }
}
