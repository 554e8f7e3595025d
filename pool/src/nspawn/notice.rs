//! What systemd-nspawn tells of itself: that its container runs, with which first process, or why it does not.

use std::{
    io::{self, PipeReader, Read},
    os::fd::{AsFd, AsRawFd, OwnedFd},
};

use nix::sys::socket::{MsgFlags, recv};
use tokio::io::Interest;

use crate::watch::watch;

/// The longest notice, and the most that is kept of a complaint, in bytes.
const LONGEST: usize = 4096;

/// Waits until the container runs and gives the pid of its first process. That process still has to become the agent.
pub(super) async fn running(socket: OwnedFd) -> io::Result<i32> {
    rustix::io::ioctl_fionbio(&socket, true)?;
    let socket = watch(socket, Interest::READABLE)?;
    let (mut leader, mut ready) = (None, false);
    loop {
        let mut buffer = [0; LONGEST];
        let receive = |socket: &OwnedFd| Ok(recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?);
        let length = socket.async_io(Interest::READABLE, receive).await?;
        for line in String::from_utf8_lossy(&buffer[..length]).lines() {
            match line.split_once('=') {
                Some(("X_NSPAWN_LEADER_PID", pid)) => leader = pid.parse().ok(),
                Some(("READY", "1")) => ready = true,
                _ => {}
            }
        }
        if let (Some(leader), true) = (leader, ready) {
            return Ok(leader);
        }
    }
}

/// What has been written to a stderr so far, on one line. Nothing from a job is ever written there.
pub(crate) fn complaint(mut stderr: &PipeReader) -> Option<String> {
    rustix::io::ioctl_fionbio(stderr.as_fd(), true).ok()?;
    let mut buffer = [0; LONGEST];
    let length = stderr.read(&mut buffer).ok()?;
    let text = String::from_utf8_lossy(&buffer[..length]);
    let lines: Vec<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let line: String = lines.join("; ").chars().filter(|letter| !letter.is_control()).collect();
    (!line.is_empty()).then_some(line)
}

#[cfg(test)]
mod tests {
    use std::{io::Write, os::unix::net::UnixDatagram};

    use super::*;

    #[tokio::test]
    async fn the_first_process_is_known_once_both_notices_are_there() {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        theirs.send(b"STATUS=Container running.\nX_NSPAWN_LEADER_PID=4321").unwrap();
        theirs.send(b"READY=1\n").unwrap();
        assert_eq!(running(ours.into()).await.unwrap(), 4321);
    }

    #[test]
    fn a_complaint_is_one_line_without_control_characters() {
        let (reader, mut writer) = io::pipe().unwrap();
        assert_eq!(complaint(&reader), None);
        writer.write_all(b"Failed to \x1b[1mopen\n\n tree.\n").unwrap();
        assert_eq!(complaint(&reader).unwrap(), "Failed to [1mopen; tree.");
    }
}
