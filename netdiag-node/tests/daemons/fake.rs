//! A daemon by its name alone.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::lab::Namespace;

/// A process of that name in a node's network namespace, which sees a folder elsewhere than the agent does.
pub(crate) struct FakeDaemon(Child);

impl FakeDaemon {
    /// `folder` gets the program; what `shown` names in it, is what the process sees at `place`.
    pub(crate) fn start(
        node: &Namespace,
        name: &str,
        folder: &Path,
        (shown, place): (&str, &str),
        flags: &str,
    ) -> Self {
        // A shell that waits for the end of its input, by another name: what the kernel calls a process is its file's name.
        std::fs::copy("/bin/sh", folder.join(name)).unwrap();
        std::fs::write(folder.join("wait"), "read line\n").unwrap();
        let at = folder.display();
        let script = format!("mount --bind {at}/{shown} {place}; exec {at}/{name} {at}/wait {flags}");
        let netns = format!("--net={}", node.path().display());
        let child = Command::new("nsenter")
            .args([netns.as_str(), "unshare", "--mount", "--propagation=private", "sh", "-ec", &script])
            .stdin(Stdio::piped())
            .spawn();
        Self(child.unwrap())
    }
}

impl Drop for FakeDaemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What `found` finds once the daemon is there.
pub(crate) fn wait_for<T>(what: &str, found: impl Fn() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(started.elapsed() < Duration::from_secs(30), "no {what} is found");
        std::thread::sleep(Duration::from_millis(50));
    }
}
