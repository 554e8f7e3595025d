//! The first words with a new sandbox's agent: proof that it is alive, fresh and of our version.

use std::{io, time::Duration};

use agent::message::{Hello, Identity, Nonce, Ready, ToAgent, ToHost, VERSION};
use thiserror::Error;
use tokio::time::timeout;

use crate::channel::{Channel, ChannelError};

/// A new sandbox's agent did not answer as it must. The sandbox is never called clean.
#[derive(Debug, Error)]
pub enum GreetingError {
    /// It could not do a step.
    #[error("the sandbox cannot {step}")]
    Fault {
        /// Which.
        step: String,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// It was asked for what it does not do. No step failed.
    #[error("the sandbox's agent refuses: {0}; build an image of another version of mayfly again")]
    Refused(String),
    /// The stream failed.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// It said something else.
    #[error("the sandbox's agent did not say that it is ready")]
    Unexpected,
    /// It speaks another version.
    #[error("the sandbox's agent speaks version {0} of the protocol, not {VERSION}: rebuild the image")]
    Version(u16),
    /// It answered another life's question.
    #[error("the sandbox's agent answered with a wrong nonce")]
    Nonce,
    /// Time ran out.
    #[error("the sandbox's agent was not ready within {0:?}")]
    Late(Duration),
}

/// Says hello and checks the answer.
pub(crate) async fn greet(
    channel: &mut Channel,
    identity: Option<Identity>,
    writable_root: bool,
    deadline: Duration,
) -> Result<Ready, GreetingError> {
    let mut nonce: Nonce = [0; 32];
    getrandom::fill(&mut nonce).expect("the kernel gives random numbers");
    channel.send(0, ToAgent::Hello(Hello { version: VERSION, nonce, identity, writable_root }))?;
    let answer = timeout(deadline, channel.next()).await.map_err(|_| GreetingError::Late(deadline))??;
    match answer.message {
        ToHost::Ready(ready) if ready.version != VERSION => Err(GreetingError::Version(ready.version)),
        ToHost::Ready(ready) if ready.nonce != nonce => Err(GreetingError::Nonce),
        ToHost::Ready(ready) => Ok(ready),
        ToHost::Fault(fault) if fault.errno == 0 => Err(GreetingError::Refused(fault.step)),
        ToHost::Fault(fault) => {
            Err(GreetingError::Fault { step: fault.step, error: io::Error::from_raw_os_error(fault.errno) })
        }
        _ => Err(GreetingError::Unexpected),
    }
}
