//! How many probes a second blackbox_exporter makes, and what they cost, beside ours: asked over its HTTP interface, as Prometheus
//! asks it.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;

use super::{Lab, NODE_ADDRESS, Speed};
use crate::bench::table::{Row, Target};
use crate::parts;

const PROGRAM: &str = "blackbox_exporter";
const ADDRESS: &str = "127.0.0.1:9115";
const MODULES: &str = "modules: { tcp_connect: { prober: tcp, timeout: 5s } }\n";
const PROBES: u32 = 5_000;
const STARTS_WITHIN: Duration = Duration::from_secs(10);

/// Ends with this value.
struct Exporter(Child);

impl Drop for Exporter {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Without the program there is nothing beside ours, and that is said.
pub(super) fn rates(lab: &Lab<'_>, ours: Speed, missing: &mut Vec<String>) -> Vec<Row> {
    match parts::ensure(&parts::BLACKBOX).and_then(|folder| measure(lab, &folder.join(PROGRAM))) {
        Ok(theirs) => vec![
            Row::beside(format!("{PROGRAM}: TCP probes each second"), theirs.per_s),
            Row::new("    ours ÷ these", ours.per_s / theirs.per_s, Target::AtLeast(1.0)),
            Row::beside("    its CPU for 1 000 of them, ms", theirs.cpu_ms),
            Row::new("    ours ÷ these", ours.cpu_ms / theirs.cpu_ms, Target::AtMost(1.0)),
        ],
        Err(error) => {
            missing.push(format!("{PROGRAM}: not measured: {error:#}"));
            Vec::new()
        }
    }
}

fn measure(lab: &Lab<'_>, program: &Path) -> Result<Speed> {
    let folder = tempfile::tempdir().context("cannot create a folder")?;
    let config = folder.path().join("blackbox.yml");
    std::fs::write(&config, MODULES).with_context(|| format!("cannot write {}", config.display()))?;
    let child = lab.pod.space.run(|| {
        let mut program = Command::new(program);
        program.arg(format!("--config.file={}", config.display())).arg(format!("--web.listen-address={ADDRESS}"));
        program.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        program.spawn().with_context(|| format!("cannot start {PROGRAM}"))
    })?;
    let exporter = Exporter(child);
    let started = Instant::now();
    while lab.pod.space.sh(&format!("curl --silent --fail --output /dev/null http://{ADDRESS}/-/healthy")).is_err() {
        if started.elapsed() > STARTS_WITHIN {
            bail!("it did not start within {} s", STARTS_WITHIN.as_secs());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let url = format!(
        "http://{ADDRESS}/probe?module=tcp_connect&target={NODE_ADDRESS}:{}&n=[1-{PROBES}]",
        lab.servers.tcp[0]
    );
    let cpu = || -> Result<Duration> {
        let clock = clock_getcpuclockid(Pid::from_raw(exporter.0.id().cast_signed()));
        Ok(clock.and_then(clock_gettime).context("cannot read its CPU time")?.into())
    };
    let (before, started) = (cpu()?, Instant::now());
    // Eight at one time, over connections that stay.
    let text =
        lab.pod.space.sh(&format!("curl --silent --parallel --parallel-max 8 '{url}' | grep -c '^probe_success 1'"))?;
    let (elapsed, used) = (started.elapsed().as_secs_f64(), cpu()?.saturating_sub(before).as_secs_f64());
    let succeeded: f64 = text.trim().parse().with_context(|| format!("grep counted no lines: {text:?}"))?;
    Ok(Speed { per_s: succeeded / elapsed, cpu_ms: used / succeeded * 1e6 })
}
