//! Puts a job's files into its sandbox, one after the other.

use std::{io, time::Duration};

use agent::{
    codec::MAX_CHUNK,
    message::{FileError, Put, ToAgent, ToHost},
};
use egress::{OpenError, Session};
use pool::Channel;
use thiserror::Error;
use tokio::{io::AsyncReadExt, time::timeout};

use crate::{
    assignment::{Assignment, Content, StagedFile},
    traffic::{Lost, PUT_STREAM, frame_or_credit},
};

/// How long the agent may take for any one answer.
const ANSWER: Duration = Duration::from_secs(10);

/// Why a file is not in the sandbox.
#[derive(Debug, Error)]
pub(crate) enum StageError {
    #[error("cannot put {path} into the sandbox: {}", explain(*error))]
    Refused { path: String, error: FileError },
    #[error("cannot read what is to become {path}")]
    Unreadable { path: String, error: io::Error },
    #[error(transparent)]
    NoDoor(#[from] OpenError),
    #[error(transparent)]
    Lost(#[from] Lost),
}

/// Opens the job's way out, if it was given one, and puts in its files and those of its secrets that lie in files.
pub(crate) async fn prepare(channel: &mut Channel, job: &Assignment) -> Result<Option<Session>, StageError> {
    let door = match &job.egress {
        Some(plan) => Some(Session::open(plan, &job.tenant, &job.id).await?),
        None => None,
    };
    stage(channel, &job.files).await?;
    for secret in door.iter().flat_map(Session::files) {
        let content = Content::Bytes(secret.bytes.clone());
        put(channel, &StagedFile { path: secret.path.clone(), mode: 0o600, content }).await?;
    }
    Ok(door)
}

/// Puts all `files` in.
pub(crate) async fn stage(channel: &mut Channel, files: &[StagedFile]) -> Result<(), StageError> {
    for file in files {
        put(channel, file).await?;
    }
    Ok(())
}

async fn put(channel: &mut Channel, file: &StagedFile) -> Result<(), StageError> {
    let unreadable = |error| StageError::Unreadable { path: file.path.clone(), error };
    let mut source = file.content.open().await.map_err(unreadable)?;
    let announcement = Put { path: file.path.clone().into_bytes(), mode: file.mode };
    channel.send(PUT_STREAM, ToAgent::Put(announcement)).map_err(Lost::from)?;
    let mut chunk = vec![0; MAX_CHUNK];
    let (mut sent, mut ended) = (0, false);
    loop {
        let room = if ended { 0 } else { channel.may_send(PUT_STREAM).unwrap_or(0) };
        let frame = tokio::select! {
            biased;
            read = source.read(&mut chunk[..room]), if room > 0 => {
                let read = read.map_err(unreadable)?;
                ended = read == 0;
                sent += read as u64;
                let message = if ended { ToAgent::End } else { ToAgent::Data(chunk[..read].to_vec()) };
                channel.send(PUT_STREAM, message).map_err(Lost::from)?;
                continue;
            }
            frame = timeout(ANSWER, frame_or_credit(channel, PUT_STREAM)) => {
                frame.map_err(|_| Lost::Silent(ANSWER, "it was given a file"))?.map_err(Lost::from)?
            }
        };
        match frame.map(|frame| (frame.stream, frame.message)) {
            None | Some((PUT_STREAM, ToHost::Reset)) => {}
            Some((PUT_STREAM, ToHost::PutDone(Ok(written)))) if ended && written == sent => return Ok(()),
            Some((PUT_STREAM, ToHost::PutDone(Err(error)))) => {
                return Err(StageError::Refused { path: file.path.clone(), error });
            }
            Some((_, ToHost::Fault(fault))) => return Err(Lost::from(fault).into()),
            Some(_) => return Err(Lost::Breach("it did not take the file that it was given").into()),
        }
    }
}

/// Why the agent did not write or give a file.
pub(crate) fn explain(error: FileError) -> String {
    match error {
        FileError::NotFound => "nothing is there".to_owned(),
        FileError::Symlink => "it is or lies behind a symbolic link, and links are not followed".to_owned(),
        FileError::NotRegular => "it is a fifo, a socket or a device".to_owned(),
        FileError::Directory => "a directory is where a file was meant, or the other way round".to_owned(),
        FileError::BadPath => "the path is not absolute and plain".to_owned(),
        FileError::BadPattern => "the pattern is not a glob".to_owned(),
        FileError::Denied => "the job's user may not".to_owned(),
        FileError::Full => "the sandbox's disk is full, in bytes or in files".to_owned(),
        FileError::ReadOnly => "the image's root file system is read-only".to_owned(),
        FileError::Truncated => "a limit on the bytes to collect cut it short".to_owned(),
        FileError::Os(errno) => io::Error::from_raw_os_error(errno).to_string(),
    }
}

/// What to do about a file that could not be put in.
pub(crate) fn hint(error: FileError) -> &'static str {
    match error {
        FileError::Full => {
            "raise the limit (limits.disk and limits.memory, or --disk and --memory), or put less in"
        }
        FileError::ReadOnly | FileError::Denied => {
            "put it below /job or /tmp, or use an image with root = \"writable\""
        }
        FileError::Directory | FileError::Symlink | FileError::NotRegular => {
            "choose a path that the image does not use"
        }
        _ => "name an absolute path below /job or /tmp",
    }
}

#[cfg(test)]
mod tests;
