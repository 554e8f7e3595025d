//! A headless Chromium, driven over two pipes by its own protocol: nothing listens anywhere.

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, Write},
    process::{Command, Stdio},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use crate::{Process, Scratch};

/// What waits in the page for something that changes it, so that nobody has to ask again and again. It gives up after 30 s.
const WAIT: &str = "new Promise((done, fail) => {
  const look = () => { if (CONDITION) { watch.disconnect(); done(true); } };
  const watch = new MutationObserver(look);
  watch.observe(document, { subtree: true, childList: true, characterData: true, attributes: true });
  window.addEventListener('load', look);
  setTimeout(() => { watch.disconnect(); fail(new Error('not seen: ' + document.body.innerText.slice(0, 1500))); }, 30000);
  look();
})";

/// A browser with one page. It goes when this is dropped.
#[derive(Debug)]
pub struct Chromium {
    orders: File,
    answers: BufReader<File>,
    session: String,
    number: u64,
    /// What the page complained of: refused by its policy, or an error of its script.
    complaints: Vec<String>,
    _process: Process,
    scratch: Scratch,
}

impl Chromium {
    /// Whether there is one on this machine.
    #[must_use]
    pub fn is_installed() -> bool {
        let mut version = Command::new("chromium");
        version.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
        version.status().is_ok_and(|status| status.success())
    }

    /// One with an empty page.
    pub fn start() -> io::Result<Self> {
        let scratch = Scratch::new("chromium")?;
        let folder = scratch.path().to_owned();
        let (orders, answers) = (folder.join("orders"), folder.join("answers"));
        if !Command::new("mkfifo").args([&orders, &answers]).status()?.success() {
            return Err(io::Error::other("mkfifo failed"));
        }
        let mut command = Command::new("sh");
        command.env("HOME", &folder);
        command.args(["-c", "exec \"$@\" 3<\"$ORDERS\" 4>\"$ANSWERS\"", "sh", "chromium"]);
        command.env("ORDERS", &orders).env("ANSWERS", &answers);
        // Tests run as root, where its own sandbox cannot be made; what it is shown is our own page.
        command.args([
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--hide-scrollbars",
        ]);
        command.args(["--no-first-run", "--disable-extensions", "--disable-background-networking"]);
        command.args(["--remote-debugging-pipe", "--force-color-profile=srgb"]);
        command.arg(format!("--user-data-dir={}", folder.join("profile").display()));
        let process = Process::start_in(&command, &folder.join("log"), &scratch)?;
        // Each waits for the other end to be opened, in the order in which the shell does it.
        let orders = File::options().write(true).open(&orders)?;
        let answers = BufReader::new(File::open(&answers)?);
        let mut browser = Self {
            orders,
            answers,
            session: String::new(),
            number: 0,
            complaints: Vec::new(),
            _process: process,
            scratch,
        };
        let target = browser.order("Target.createTarget", &json!({ "url": "about:blank" }))?;
        let how = json!({ "targetId": target["targetId"], "flatten": true });
        let attached = browser.order("Target.attachToTarget", &how)?;
        attached["sessionId"].as_str().unwrap_or_default().clone_into(&mut browser.session);
        for domain in ["Page.enable", "Runtime.enable", "Log.enable"] {
            browser.order(domain, &json!({}))?;
        }
        Ok(browser)
    }

    /// Goes to an address.
    pub fn open(&mut self, url: &str) -> io::Result<()> {
        let went = self.order("Page.navigate", &json!({ "url": url }))?;
        match went["errorText"].as_str() {
            Some(error) => Err(io::Error::other(format!("{url}: {error}"))),
            None => self.wait("document.readyState === 'complete' && location.href !== 'about:blank'"),
        }
    }

    /// Waits until an expression holds in the page.
    pub fn wait(&mut self, condition: &str) -> io::Result<()> {
        self.evaluate(&WAIT.replace("CONDITION", condition)).map(|_| ())
    }

    /// What an expression comes to in the page.
    pub fn evaluate(&mut self, expression: &str) -> io::Result<Value> {
        let ask = json!({ "expression": expression, "awaitPromise": true, "returnByValue": true });
        let mut answer = self.order("Runtime.evaluate", &ask)?;
        if answer.get("exceptionDetails").is_some() {
            return Err(io::Error::other(format!("{expression}: {answer:#}")));
        }
        Ok(answer["result"]["value"].take())
    }

    /// Sets the size of what is seen, and whether it is dark.
    pub fn look(&mut self, (width, height): (u32, u32), dark: bool) -> io::Result<()> {
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600 });
        self.order("Emulation.setDeviceMetricsOverride", &size)?;
        let scheme = json!({ "name": "prefers-color-scheme", "value": if dark { "dark" } else { "light" } });
        self.order("Emulation.setEmulatedMedia", &json!({ "features": [scheme] })).map(|_| ())
    }

    /// The whole page as a PNG.
    pub fn picture(&mut self) -> io::Result<Vec<u8>> {
        let how = json!({ "format": "png", "captureBeyondViewport": true });
        let shot = self.order("Page.captureScreenshot", &how)?;
        STANDARD.decode(shot["data"].as_str().unwrap_or_default()).map_err(io::Error::other)
    }

    /// What the page complained of since the last time.
    pub fn complaints(&mut self) -> Vec<String> {
        std::mem::take(&mut self.complaints)
    }

    fn order(&mut self, method: &str, params: &Value) -> io::Result<Value> {
        self.number += 1;
        let mut order = json!({ "id": self.number, "method": method, "params": params });
        if !self.session.is_empty() {
            order["sessionId"] = json!(self.session);
        }
        let mut line = order.to_string().into_bytes();
        line.push(0);
        self.orders.write_all(&line)?;
        loop {
            let mut line = Vec::new();
            self.answers.read_until(0, &mut line)?;
            if line.pop().is_none() {
                let log = fs::read_to_string(self.scratch.path().join("log")).unwrap_or_default();
                return Err(io::Error::other(format!("chromium ended; its log: {log}")));
            }
            let mut said: Value = serde_json::from_slice(&line).map_err(io::Error::other)?;
            match said["method"].as_str() {
                Some("Runtime.exceptionThrown") => self.complaints.push(said["params"].to_string()),
                Some("Log.entryAdded") if said["params"]["entry"]["level"] == "error" => {
                    self.complaints.push(said["params"]["entry"].to_string());
                }
                _ => {}
            }
            if said["id"] == self.number {
                return match said.get("error") {
                    Some(error) => Err(io::Error::other(format!("{method}: {error}"))),
                    None => Ok(said["result"].take()),
                };
            }
        }
    }
}
