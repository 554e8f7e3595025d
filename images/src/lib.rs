//! Image definitions, the builder, and the content-addressed store that sandboxes start from.
//!
//! A [`Definition`] says what shall be in an image; [`build`] makes it once and puts it into a [`Store`];
//! [`Store::resolve`] gives back an [`Image`], which cannot be removed while it is held. The bytes and owners of
//! a stored image never change again: a sandbox mounts them read-only.
//!
//! This crate talks to the file system and, while it builds, to mmdebstrap. It knows no sandbox and no job.

mod archive;
mod builder;
mod config;
mod definition;
mod digest;
mod error;
mod lint;
mod lock;
mod machine;
mod manifest;
mod name;
mod normalise;
mod programs;
mod progress;
mod resolver;
mod rootfs;
mod source;
mod store;
mod tree;
mod unpack;

pub use archive::ArchiveError;
pub use builder::{BuildError, build, rebuild};
pub use config::{ImageConfig, RootMode};
pub use definition::{Definition, DefinitionError, JobDefaults};
pub use digest::Digest;
pub use error::{Error, IoError};
pub use lint::Finding;
pub use machine::{
    CollectedForm, CollectedKernel, CollectedMachines, Kernel, KernelFrom, MachineError, MachineForm,
    machine_templates, machine_tools,
};
pub use manifest::Manifest;
pub use name::{ImageName, ImageRef, RefError};
pub use programs::{AGENT, PROBER, agent_digest};
pub use progress::{Progress, Silent};
pub use resolver::Resolver;
pub use source::{Source, SourceError};
pub use store::{Collected, Image, Listed, Store, StoreError};
pub use tree::{Difference, TreeError};
pub use unpack::UnpackError;
