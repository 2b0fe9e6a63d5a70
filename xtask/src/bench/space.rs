//! A network namespace for measurements: never the machine's own.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::thread;

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns, unshare};

use crate::command;

/// A network namespace that ends with this value.
pub(in crate::bench) struct Space {
    handle: OwnedFd,
}

impl Space {
    pub(in crate::bench) fn new() -> Result<Self> {
        let created = thread::spawn(|| -> Result<Self> {
            unshare(CloneFlags::CLONE_NEWNET).context("cannot create a network namespace")?;
            let handle = File::open("/proc/thread-self/ns/net").context("cannot open the new network namespace")?;
            Ok(Self { handle: handle.into() })
        });
        created.join().map_err(|_| anyhow!("creating a namespace panicked"))?
    }

    pub(in crate::bench) fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(self.handle.as_fd(), CloneFlags::CLONE_NEWNET).context("cannot enter a network namespace")?;
                work()
            });
            inside.join().map_err(|_| anyhow!("work in a namespace panicked"))?
        })
    }

    pub(in crate::bench) fn sh(&self, script: &str) -> Result<String> {
        self.run(|| command::output(command::tool("sh").args(["-ec", script])))
    }

    /// Where `ip` finds it.
    pub(in crate::bench) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.handle.as_raw_fd())
    }
}
