//! `netdiag mcp` as an agent's client runs it, by a kubeconfig alone: the server in the cluster has the tools, and knows who asks.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// Far above what one attempt takes.
const WITHIN: Duration = Duration::from_secs(30);
/// What the program waits for answers that are still to come, and some more.
const ENDS_WITHIN: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(100);

/// What is wrong, if something is.
pub(super) fn answered(program: &Path, kubeconfig: &Path) -> Result<Option<String>> {
    let mut client = Client::start(program, kubeconfig)?;
    let outcome = client.story().and_then(|wrong| Ok((wrong, client.hang_up()?)));
    // It has ended by itself, unless something is wrong.
    let _ = client.child.kill();
    let _ = client.child.wait();
    let mut said = String::new();
    client.child.stderr.take().context("stderr is a pipe")?.read_to_string(&mut said)?;
    let (wrong, code) = outcome.with_context(|| format!("netdiag mcp said: {said}"))?;
    let wrong = wrong.or_else(|| (code != Some(0)).then(|| format!("it ends with code {code:?}")));
    Ok(wrong.map(|wrong| format!("netdiag mcp: {wrong} {said}")))
}

struct Client {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
}

impl Client {
    fn start(program: &Path, kubeconfig: &Path) -> Result<Self> {
        let mut command = Command::new(program);
        command.arg("mcp").arg("--kubeconfig").arg(kubeconfig);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("cannot start netdiag")?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().context("stdout is a pipe")?;
        let (sender, lines) = channel();
        // Ends with the pipe.
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Ok(Self { child, stdin, lines })
    }

    fn story(&mut self) -> Result<Option<String>> {
        let client = json!({"name": "e2e", "version": "1"});
        let hello = json!({"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": client});
        let hello = self.asked(1, "initialize", hello)?;
        if hello["result"]["serverInfo"]["name"] != "netdiag" {
            return Ok(Some(format!("initialize is told {hello}")));
        }
        self.say(&json!({"jsonrpc": "2.0", "method": "notifications/initialized"}))?;
        let tools = self.asked(2, "tools/list", json!({}))?;
        let has_probe = |tools: &Vec<Value>| tools.iter().any(|tool| tool["name"] == "probe");
        if !tools["result"]["tools"].as_array().is_some_and(has_probe) {
            return Ok(Some(format!("tools/list is told {tools}")));
        }
        let probe = json!({"kind": "tcp", "from": "pod/shop/client", "to": "service/shop/web:80", "count": 1});
        let answer = self.asked(3, "tools/call", json!({"name": "probe", "arguments": probe}))?;
        let is_well = answer["result"]["structuredContent"]["status"] == "well";
        Ok((!is_well).then(|| format!("a probe by who may is told {answer}")))
    }

    fn asked(&mut self, id: u64, method: &str, params: Value) -> Result<Value> {
        self.say(&json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params}))?;
        let line = self.lines.recv_timeout(WITHIN).with_context(|| format!("no answer to {method}"))?;
        let answer: Value = serde_json::from_str(&line).with_context(|| format!("{line:?} is no JSON"))?;
        if answer["id"] != id {
            bail!("the answer to {method} is another one's: {line}");
        }
        Ok(answer)
    }

    fn say(&mut self, message: &Value) -> Result<()> {
        let stdin = self.stdin.as_mut().context("stdin is open")?;
        writeln!(stdin, "{message}").context("cannot write to netdiag mcp")
    }

    /// Closes stdin; the code that it ends with.
    fn hang_up(&mut self) -> Result<Option<i32>> {
        self.stdin = None;
        let closed = Instant::now();
        while closed.elapsed() < ENDS_WITHIN {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status.code());
            }
            std::thread::sleep(POLL);
        }
        bail!("it does not end within {} s of the end of stdin", ENDS_WITHIN.as_secs());
    }
}
