//! `mayfly-libvirt URI`: does at libvirt what mayfly asks for on its standard input, a line each.
//!
//! A program of its own: libvirt's calls wait as long as they please and its library brings half a hundred others. Mayfly
//! gives each question its own time and ends this process when that is over; nothing is lost with it. It keeps nothing,
//! decides nothing, and ends with its input.

mod domains;

use std::{
    io::{self, BufRead, Write},
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use libvirt_protocol::{Answer, Greeting, Question, Reply, VERSION};

use self::domains::Libvirt;

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let (Some(uri), None) = (words.next(), words.next()) else {
        let _ = writeln!(io::stderr(), "mayfly-libvirt is started by mayfly, with libvirt's address");
        return ExitCode::FAILURE;
    };
    // What fails is in the answers.
    virt::error::clear_error_callback();
    match serve(&uri) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever asked is gone, or no longer makes sense.
        Err(_) => ExitCode::FAILURE,
    }
}

fn serve(uri: &str) -> io::Result<()> {
    let out = Arc::new(Mutex::new(io::stdout()));
    say(&out, &Greeting { protocol: VERSION })?;
    let libvirt = Arc::new(Libvirt::at(uri));
    for line in io::stdin().lock().lines() {
        let question: Question = serde_json::from_str(&line?)?;
        let (libvirt, out) = (Arc::clone(&libvirt), Arc::clone(&out));
        // One that waits for libvirt holds up no other.
        thread::spawn(move || {
            let answer = match libvirt.answer(&question.ask) {
                Ok(answer) => answer,
                Err(refused) => Answer::Refused { step: refused.step.to_owned(), why: refused.why },
            };
            // With nobody to tell, the input ends too.
            let _ = say(&out, &Reply { id: question.id, answer });
        });
    }
    Ok(())
}

fn say(out: &Mutex<io::Stdout>, what: &impl serde::Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(what)?;
    line.push(b'\n');
    let mut out = out.lock().unwrap_or_else(PoisonError::into_inner);
    out.write_all(&line)?;
    out.flush()
}
