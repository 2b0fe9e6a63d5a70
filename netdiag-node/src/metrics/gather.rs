//! Collects the numbers of one look: from the subjects that count, from the kernel, and about the agent itself.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use jiff::Timestamp;
use netdiag_common::observation::conntrack::Conntrack;

use super::{Export as _, Families, Family, MAX_SERIES, catalogue};
use crate::host::{conntrack, own};
use crate::readings::Readings;

/// Everything that a look needs.
pub struct Gather {
    readings: Arc<Readings>,
    /// As in reports.
    instance: String,
    started: Timestamp,
    exports: super::otlp::Exports,
}

impl Gather {
    pub fn new(readings: Arc<Readings>, instance: String, started: Timestamp) -> Self {
        Self { readings, instance, started, exports: super::otlp::Exports::default() }
    }

    pub(super) fn instance(&self) -> &str {
        &self.instance
    }

    pub(super) fn node(&self) -> &str {
        self.readings.node()
    }

    pub(super) fn started(&self) -> Timestamp {
        self.started
    }

    pub(super) fn exports(&self) -> &super::otlp::Exports {
        &self.exports
    }

    /// Blocks for some milliseconds.
    pub fn families(&self) -> Vec<Family> {
        let mut families = Families::default();
        self.readings.watch().export(&mut families);
        self.node_numbers(&mut families);
        self.own(&mut families);
        self.exports.export(&mut families);
        families.add(&catalogue::SERIES_LIMIT, &[], MAX_SERIES as u64);
        families.finish()
    }

    fn node_numbers(&self, families: &mut Families) {
        let host = self.readings.host();
        // What cannot be read is left out: a reading of the topic says why.
        if let Ok(Some(found)) = host.netns.run(|| conntrack::read(&host.proc)) {
            conntrack_numbers(&found, families);
        }
        if let Ok(pods) = self.readings.attribution().pods() {
            families.add(&catalogue::PODS, &[], pods.pods.len() as u64);
        }
    }

    fn own(&self, families: &mut Families) {
        let proc = &self.readings.host().proc;
        let version = env!("CARGO_PKG_VERSION");
        families.add(&catalogue::AGENT, &[version, &self.instance], 1_u64);
        #[expect(clippy::cast_precision_loss, reason = "milliseconds of this century fit into 53 bits")]
        let started_s = self.started.as_millisecond() as f64 / 1e3;
        families.add(&catalogue::PROCESS_START, &[], started_s);
        families.add(&catalogue::REQUESTS_SHED, &[], self.readings.shed.load(Ordering::Relaxed));
        if let Ok(usage) = own::usage(proc) {
            families.add(&catalogue::PROCESS_CPU, &[], usage.cpu.as_secs_f64());
            families.add(&catalogue::PROCESS_MEMORY, &[], usage.resident_bytes);
            families.add(&catalogue::PROCESS_DESCRIPTORS, &[], usage.descriptors);
            families.add(&catalogue::PROCESS_THREADS, &[], usage.threads);
        }
        let (mut programs_bytes, mut maps_bytes) = (0, 0);
        for found in own::in_kernel(proc).unwrap_or_default() {
            match found {
                own::InKernel::Map { memory_bytes } => maps_bytes += memory_bytes,
                own::InKernel::Program { id, memory_bytes, runs, run_ns } => {
                    programs_bytes += memory_bytes;
                    if let Some(name) = self.readings.watch().program(id)
                        && runs > 0
                    {
                        families.add(&catalogue::PROGRAM_RUNS, &[name], runs);
                        let seconds = std::time::Duration::from_nanos(run_ns).as_secs_f64();
                        families.add(&catalogue::PROGRAM_SECONDS, &[name], seconds);
                    }
                }
            }
        }
        families.add(&catalogue::PROGRAM_MEMORY, &["programs"], programs_bytes);
        families.add(&catalogue::PROGRAM_MEMORY, &["tables"], maps_bytes);
    }
}

fn conntrack_numbers(found: &Conntrack, families: &mut Families) {
    families.add(&catalogue::CONNTRACK_ENTRIES, &[], found.entries);
    families.add(&catalogue::CONNTRACK_LIMIT, &[], found.limit);
    for (cause, count) in [
        ("invalid", found.invalid),
        ("insert_failed", found.insert_failed),
        ("drop", found.drop),
        ("early_drop", found.early_drop),
        ("search_restart", found.search_restart),
        ("clash_resolve", found.clash_resolve),
        ("chaintoolong", found.chain_too_long),
    ] {
        families.add(&catalogue::CONNTRACK_FAILURES, &[cause], count);
    }
}
