//! Other programs that look at drops, each in the way that its users do.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::bpf;
use super::flood::{LOOPBACK, SLICE, flood};
use super::process::{Running, SETTLES_IN};
use crate::bench::space::Space;
use crate::command;

/// They look tracepoints up in tracefs, which not every machine has mounted. Seen by them alone.
const WITH_TRACEFS: &str = "mount -t tracefs tracefs /sys/kernel/tracing; mount -t debugfs debugfs /sys/kernel/debug";
const STARTS_WITHIN: Duration = Duration::from_mins(2);
/// perf needs less than a second to start.
const TRIED_FOR: Duration = Duration::from_secs(3);

/// A program and what it is told.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Peer {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    program: &'static str,
    arguments: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Adds one per drop: the least that it can do.
    Count,
    /// Prints each drop.
    Print,
}

static PEERS: [Peer; 3] = [
    Peer {
        name: "bpftrace count()",
        kind: Kind::Count,
        program: "bpftrace",
        arguments: "-e 'tracepoint:skb:kfree_skb { @ = count(); }'",
    },
    Peer {
        name: "bpftrace printf()",
        kind: Kind::Print,
        program: "bpftrace",
        arguments: r#"-e 'tracepoint:skb:kfree_skb { printf("%d %s\n", args->reason, ksym(args->location)); }'"#,
    },
    Peer {
        name: "perf trace",
        kind: Kind::Print,
        program: "perf",
        arguments: "trace --no-syscalls --event skb:kfree_skb",
    },
];

/// Those that run here, and a line for each that does not. `space` has a loopback that is up.
pub(super) fn find(space: &Space) -> (Vec<&'static Peer>, Vec<String>) {
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    for peer in &PEERS {
        match peer.path() {
            None => missing.push(format!("{}: {} is not installed", peer.name, peer.program)),
            // bpftrace loads a program or ends; perf may run and see nothing, when it is older than the kernel.
            Some(_) if peer.program == "perf" && !peer.prints(space) => {
                missing.push(format!("{}: installed, but it prints no drop of this kernel", peer.name));
            }
            Some(_) => found.push(peer),
        }
    }
    // Ended by a signal it does not say NET_DM_CMD_STOP, and the kernel goes on for whoever runs next.
    missing.push("dropwatch: not run, because the kernel's monitor stays on when it is killed".to_owned());
    (found, missing)
}

impl Peer {
    pub(super) fn start(&self) -> Result<Running> {
        let before = bpf::programs().len();
        let mut running = Running::child(&mut self.command("exec"))?;
        let deadline = Instant::now() + STARTS_WITHIN;
        while self.program == "bpftrace" && bpf::programs().len() <= before {
            if running.has_ended() || Instant::now() > deadline {
                bail!("{} did not attach a program within {} s", self.name, STARTS_WITHIN.as_secs());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        std::thread::sleep(SETTLES_IN);
        if running.has_ended() {
            bail!("{} ended by itself", self.name);
        }
        Ok(running)
    }

    fn path(&self) -> Option<PathBuf> {
        command::find(self.program)
    }

    /// `how` stands before the program's name.
    fn command(&self, how: &str) -> Command {
        let script = format!("{{ {WITH_TRACEFS}; }} 2>/dev/null; {how} {} {}", self.program, self.arguments);
        let mut command = command::tool("unshare");
        command.args(["--mount", "sh", "-c", &script]);
        command
    }

    /// Whether it says anything while packets are dropped.
    fn prints(&self, space: &Space) -> bool {
        let mut command = self.command(&format!("exec timeout --signal=INT {}", TRIED_FOR.as_secs()));
        std::thread::scope(|scope| {
            let printed = scope.spawn(move || command.output());
            while !printed.is_finished() {
                // Without drops it prints nothing, and its rows are missing.
                let _ = flood(space, LOOPBACK, 1, SLICE);
                std::thread::sleep(Duration::from_millis(100));
            }
            // perf trace prints to its standard error.
            let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).contains("kfree_skb(");
            matches!(printed.join(), Ok(Ok(output)) if said(&output.stderr) || said(&output.stdout))
        })
    }
}
