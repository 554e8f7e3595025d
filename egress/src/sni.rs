//! Looks at how TLS begins, without breaking it: which name the client says that it wants.

use std::{io, time::Duration};

use rustls::server::Acceptor;
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    time::timeout,
};

use crate::refusal::Refusal;

/// How long a client may take to say its first word.
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest first word. What rustls takes is bounded as well.
const LONGEST: usize = 64 * 1024;

/// Reads a `ClientHello` and gives back its bytes, if it is one for exactly this name.
pub(crate) async fn expect(job: &mut (impl AsyncRead + Unpin), name: &str) -> Result<Vec<u8>, Refusal> {
    let refusal = |why: String| Refusal::Sni(why);
    match timeout(PATIENCE, read(job, name)).await {
        Ok(Ok(hello)) => Ok(hello),
        Ok(Err(why)) => Err(refusal(why)),
        Err(_) => Err(refusal(format!("no TLS began within {PATIENCE:?}"))),
    }
}

async fn read(job: &mut (impl AsyncRead + Unpin), name: &str) -> Result<Vec<u8>, String> {
    let (mut acceptor, mut hello) = (Acceptor::default(), Vec::new());
    let mut piece = [0; 4096];
    while hello.len() < LONGEST {
        let read = job.read(&mut piece).await.map_err(|error| error.to_string())?;
        if read == 0 {
            return Err("it ended before TLS began".to_owned());
        }
        hello.extend_from_slice(&piece[..read]);
        let no_tls = |error: io::Error| format!("what begins there is no TLS: {error}");
        let mut rest = &piece[..read];
        while !rest.is_empty() {
            acceptor.read_tls(&mut rest).map_err(no_tls)?;
        }
        let accepted = acceptor.accept().map_err(|(error, _)| no_tls(io::Error::other(error)))?;
        if let Some(accepted) = accepted {
            return match accepted.client_hello().server_name() {
                Some(said) if said.eq_ignore_ascii_case(name) => Ok(hello),
                Some(said) => Err(format!("TLS for {said} was begun on a connection to {name}")),
                None => Err(format!("TLS was begun without a name on a connection to {name}")),
            };
        }
    }
    Err("the beginning of TLS is longer than it may be".to_owned())
}
